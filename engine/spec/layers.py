"""From files and overrides to the one tree that is validated: `extends`, the dataset's own file, relative paths.

A path in a file is relative to that file, one on the command line to the current directory. Data files are
hashed here, so that the resolved spec, and with it every cache key, says which data it means.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from pathlib import Path

from engine.errors import Problem
from engine.spec.diagnostics import placed
from engine.spec.reader import Unreadable, read_text, read_yaml
from engine.spec.tree import NOWHERE, Node, Where, merge

MAX_LAYERS = 16
_SHORTHANDS = {"dataset": "file", "algorithm": "name", "model": "name"}
"""Blocks that may be one word, and the key that the word is for."""


class Layers:
    """Reads and merges the files of one spec. `problems` collects what was wrong, `sources` what was read."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.incomplete = False
        """Whether a layer could not be read, so that what is missing may have stood there."""
        self.sources: dict[Path, str] = {}
        self._trees: dict[Path, Node | None] = {}
        self._hashes: dict[Path, str] = {}

    def spec(self, path: Path, wanted: Where = NOWHERE, chain: tuple[Path, ...] = ()) -> Node | None:
        """The tree of a spec's file, laid over those that it extends. None where it cannot be read."""
        real = path.resolve()
        if real in chain or len(chain) >= MAX_LAYERS:
            loop = " → ".join(str(one.name) for one in (*chain, real))
            reason = "each of them extends the next" if real in chain else f"more than {MAX_LAYERS} layers"
            self.problems.append(placed(f"extends goes round: {loop}: {reason}", "extends", wanted))
            self.incomplete = True
            return None
        tree = self.read(path, wanted, "extends")
        if tree is None:
            self.incomplete = True
            return None
        below = self._extended(tree, path, (*chain, real))
        tree = tree.without("extends")
        return tree if below is None else overlay(below, tree)

    def _extended(self, tree: Node, path: Path, chain: tuple[Path, ...]) -> Node | None:
        """What a tree extends: the files it names, later ones over earlier ones."""
        extends = tree.get("extends")
        if extends is None or extends.value is None:
            return None
        names = extends.value if isinstance(extends.value, tuple) else (extends,)
        below: Node | None = None
        for name in names:
            if not isinstance(name.value, str):
                self.problems.append(placed("extends takes a file's name, or a list of them", "extends", name.where))
                self.incomplete = True
                continue
            layer = self.spec(path.parent / name.value, name.where, chain)
            if layer is not None:
                below = layer if below is None else overlay(below, layer)
        return below

    def read(self, path: Path, wanted: Where, key: str) -> Node | None:
        """The tree of one file, whose root is a mapping. What is wrong is said once, and where it was asked for."""
        real = path.resolve()
        if real not in self._trees:
            self._trees[real] = self._read(path, wanted, key)
        return self._trees[real]

    def _read(self, path: Path, wanted: Where, key: str) -> Node | None:
        if not path.exists():
            self.problems.append(placed(absent(path), "" if wanted == NOWHERE else key, wanted))
            return None
        try:
            text = read_text(path)
            self.sources[path] = text
            tree, problems = read_yaml(text, str(path))
        except Unreadable as error:
            self.problems.append(error.problem)
            return None
        self.problems += problems
        if not isinstance(tree.value, dict):
            message = (
                "a spec is a block of `key: value`" if key == "extends" else "a dataset is a block of `key: value`"
            )
            self.problems.append(placed(message, "", tree.where))
            return None
        return tree

    def complete(self, root: Node) -> Node:
        """The tree with its shorthands written out, its dataset's file merged in, and its paths made absolute."""
        for block in _SHORTHANDS:
            root = spelled(root, block)
        dataset = root.get("dataset")
        if dataset is not None and isinstance(dataset.value, dict) and dataset.get("file") is not None:
            root = root.with_key("dataset", self._dataset(dataset))
        return root

    def _dataset(self, block: Node) -> Node:
        name = block.get("file")
        inline = block.without("file")
        if name is None or not isinstance(name.value, str):
            if name is not None and name.value is not None:
                self.problems.append(placed("dataset.file must be a file's name", "dataset.file", name.where))
                self.incomplete = True
            return inline
        tree = self.read(located(name), name.where, "dataset.file")
        if tree is None:
            return self._unread(inline)
        if tree.get("dataset") is not None and tree.get("items") is None:
            message = (
                f"{name.value} is an experiment, not a dataset: name the file that its `dataset` names, or extend it"
            )
            self.problems.append(placed(message, "dataset.file", name.where))
            return self._unread(inline)
        return merge(tree, inline, ("dataset",))

    def _unread(self, inline: Node) -> Node:
        self.incomplete = True
        return inline

    def absolute(self, root: Node) -> Node:
        """The tree with every path of data and models absolute, and the hashes of data files filled in."""
        dataset = root.get("dataset")
        if dataset is not None and isinstance(dataset.value, dict):
            root = self._source(root, ("dataset", "items"), "sha256")
            splits = dataset.get("splits")
            for split in splits.value if splits is not None and isinstance(splits.value, dict) else ():
                root = self._source(root, ("dataset", "splits", split), "sha256")
        for block in (("model", "warmup"), ("algorithm", "data")):
            root = self._source(root, block, "file_sha256")
        root = self._folder(root, ("model", "name"))
        services = root.get("services")
        for service in services.value if services is not None and isinstance(services.value, dict) else ():
            root = self._source(root, ("services", service, "corpus"), "sha256")
            for key in ("model", "lora"):
                root = self._folder(root, ("services", service, key))
            root = self._folder(root, ("services", service, "folder"), always=True)
        folder = root.at("tracking", "tensorboard", "folder")
        if folder is not None and isinstance(folder.value, str):
            place = Node(os.path.abspath(located(folder)), folder.where)
            root = _set(root, ("tracking", "tensorboard", "folder"), place)
        return root

    def _folder(self, root: Node, path: tuple[str, ...], *, always: bool = False) -> Node:
        """The tree with the directory named at `path` absolute; `always`: nothing else than one can stand there."""
        name = root.at(*path)
        if name is None or not isinstance(name.value, str) or not (always or is_path(name.value, name)):
            return root
        folder, dotted = located(name), ".".join(path)
        if not folder.is_dir():
            self.problems.append(placed(f"{dotted}: {absent(folder, 'directory')}", dotted, name.where))
        return _set(root, path, Node(os.path.abspath(folder), name.where))

    def _source(self, root: Node, path: tuple[str, ...], key: str) -> Node:
        block = root.at(*path)
        name = block.get("file") if block is not None else None
        if block is None or name is None or not isinstance(name.value, str):
            return root
        dotted, file = ".".join((*path, "file")), located(name)
        if not file.is_file():
            self.problems.append(placed(absent(file), dotted, name.where))
            return root
        digest, stated = self._hash(file), block.get(key)
        if stated is not None and stated.value is not None and stated.value != digest:
            message = f"{name.value} has changed: its SHA-256 is {digest}, not {stated.value}"
            self.problems.append(placed(message, f"{'.'.join(path)}.{key}", stated.where))
            return root
        root = _set(root, (*path, "file"), Node(os.path.abspath(file), name.where))
        return _set(root, (*path, key), Node(digest, name.where))

    def _hash(self, file: Path) -> str:
        if file not in self._hashes:
            with file.open("rb") as stream:
                self._hashes[file] = hashlib.file_digest(stream, "sha256").hexdigest()
        return self._hashes[file]


def overlay(below: Node, above: Node) -> Node:
    """`above` laid over `below`, where a block below may be the one word for it."""
    for block in _SHORTHANDS:
        over = above.get(block)
        if over is not None and isinstance(over.value, dict):
            below = spelled(below, block)
    return merge(below, above)


def spelled(root: Node, block: str) -> Node:
    """The tree with `block: word` written as `block: {key: word}`."""
    node = root.get(block)
    if node is None or not isinstance(node.value, str):
        return root
    key = _SHORTHANDS[block]
    return root.with_key(block, Node({key: node}, node.where, {key: node.where}))


def located(name: Node) -> Path:
    """The path that a value names: relative to its file, or to here if it came from the command line."""
    base = Path(name.where.file).parent if name.where.file is not None else Path()
    return base / os.path.expanduser(str(name.value))


def is_path(name: str, node: Node) -> bool:
    """Whether a model's name is a directory's: it looks like one, or there is one."""
    if name.startswith((".", "/", "~")):
        return True
    return ":" not in name and "@" not in name and bool(name) and located(node).is_dir()


def absent(path: Path, kind: str = "file") -> str:
    """That there is nothing at a path, with the name of a neighbour that may have been meant."""
    try:
        names = sorted(os.listdir(path.parent)[:5000])
    except OSError:
        return f"there is no {kind} {path}, nor a directory {path.parent}"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"there is no {kind} {path}" + (f". Did you mean {close[0]}?" if close else "")


def _set(root: Node, path: tuple[str, ...], value: Node) -> Node:
    key, *rest = path
    child = root.get(key)
    return root.with_key(key, value if not rest or child is None else _set(child, tuple(rest), value))
