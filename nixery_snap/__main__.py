"""`python -m nixery_snap`."""

from nixery_snap.cli import main

main()
