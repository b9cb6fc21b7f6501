"""The formats of the Open Container Initiative, pure: no I/O, no asyncio, no logging."""
