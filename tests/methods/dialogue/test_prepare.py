"""A scratch model warms up on the prompts of the dataset, wherever its items stand."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.methods.dialogue.prepare import prepare
from engine.runtime.local import LocalContext

WARMUP = {"template": "It is {word}.", "slots": {"word": ["red", "blue"]}, "steps": 1, "examples": 8, "batch_size": 2}


def made(folder: Path, items: object) -> tuple[object, object]:
    config = {
        "dataset": {"items": items, "main_prompt": "Be brief.", "system_prompt": ""},
        "model": {"name": "scratch:llama-nano", "warmup": WARMUP},
    }
    ctx = LocalContext(config, 0, folder)
    prepare(ctx)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_items_in_a_file_give_the_model_that_inline_items_give(tmp_path: Path) -> None:
    rows = [{"prompt": "Which colour?", "answer": "red"}, {"prompt": "Say a colour.", "answer": "blue"}]
    file = tmp_path / "items.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    inline, words = made(tmp_path / "inline", rows)
    from_file, same_words = made(tmp_path / "file", {"file": str(file), "format": "jsonl"})

    assert words.get_vocab() == same_words.get_vocab()  # type: ignore[attr-defined]
    expected, found = inline.state_dict(), from_file.state_dict()  # type: ignore[attr-defined]
    assert all(bool((expected[name] == found[name]).all()) for name in expected)
