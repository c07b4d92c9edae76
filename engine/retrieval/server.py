"""The service kind `http-retriever`: a retriever behind `POST /search`.

    {"queries": ["…"], "k": 5}  →  {"passages": [[{"id": "…", "title": "…", "text": "…", "score": 1.5}, …]]}

Run as `python -m engine.retrieval.server HOST PORT OPTIONS`, the options being JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from engine.retrieval.retriever import Retriever, read_corpus
from engine.runtime.json_server import Rejected, serve, texts_of

MOST_QUERIES, MOST_PASSAGES = 4096, 1000


def search(retriever: Retriever, request: Any) -> dict[str, Any]:
    """The answer to one request. Raises Rejected."""
    queries = texts_of(request, "queries", most=MOST_QUERIES)
    k = request.get("k", 10)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST_PASSAGES:
        raise Rejected(f"'k' is how many passages to find: 1 to {MOST_PASSAGES}, not {k!r}")
    found = retriever.search(queries, k)
    return {
        "passages": [
            [
                {"id": hit.passage.id, "title": hit.passage.title, "text": hit.passage.text, "score": hit.score}
                for hit in hits
            ]
            for hits in found
        ]
    }


def retriever_of(options: Mapping[str, Any]) -> Retriever:
    """The retriever that a service's definition asks for."""
    if options["function"] is not None:
        module, _, name = options["function"].partition(":")
        return cast(Retriever, getattr(importlib.import_module(module), name)())
    try:
        from engine.retrieval.bm25 import BM25
    except ImportError as error:
        raise ImportError(f"{error}: install the extra, `pip install rlx[retrieval]`") from error
    return BM25(read_corpus(Path(options["corpus"]["file"])), k1=options["k1"], b=options["b"])


def main(host: str, port: int, options: Mapping[str, Any]) -> None:
    """Load, then serve until told to stop."""
    retriever = retriever_of(options)
    serve(host, port, {"/search": lambda request: search(retriever, request)})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
