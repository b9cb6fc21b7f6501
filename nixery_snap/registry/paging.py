"""Lists in pages: `n`, `last` and Link (OCI distribution-spec, "Listing Tags"; RFC 8288)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from nixery_snap.errors import InvalidFormat

_MAX_ITEMS: Final = 1000  # in one answer
_MAX_DIGITS: Final = 18


def page(
    request: web.Request,
    items: Sequence[str],
    order: Callable[[str], Any],
    answer: Callable[[list[str]], Any],
    may_have: Callable[[str], bool] = lambda item: True,
) -> web.Response:
    """The part of `items`, which are in `order`, that is asked for, as `answer` puts it in JSON.

    No more of them are looked at than it takes to find as many as one `may_have`. Raises InvalidFormat.
    """
    wanted = request.query.get("n", str(_MAX_ITEMS))
    if not (wanted.isascii() and wanted.isdecimal() and len(wanted) <= _MAX_DIGITS):
        raise InvalidFormat("number of entries", wanted, "n must be a whole number")
    last = request.query.get("last", "")
    begin = bisect_right(items, order(last), key=order) if last else 0
    count = min(int(wanted), _MAX_ITEMS)
    found = list(islice(filter(may_have, islice(items, begin, None)), count + 1))
    headers = {"Cache-Control": "no-cache"}
    is_last, found = len(found) <= count, found[:count]
    if found and not is_last:
        query = urlencode({"n": len(found), "last": found[-1]})
        headers["Link"] = f'<{request.path}?{query}>; rel="next"'
    return web.json_response(answer(found), headers=headers)
