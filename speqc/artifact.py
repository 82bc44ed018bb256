"""The artifact on disk: a folder with a program, its weights, and a manifest that vouches for them.

It is written beside its final name and renamed when complete. Loading checks format version and
digests and that the program is legal; nothing in the folder is executed but the program.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from xdsl.dialects.builtin import ModuleOp

from speqc.dump_ir import print_module
from speqc.folder_writer import check_place, folder_in_the_making
from speqc.program_reader import read_program
from speqc.runtime.errors import SpeqcError
from speqc.runtime.module_attributes import (
    module_context,
    module_target,
    proved_positions,
    recompute_reason,
)
from speqc.runtime.tensor_references import has_bytes
from speqc.tensor_store import StoredTensor, file_digest, file_digests
from speqc.weight_writer import Calibration, write_weights

FORMAT = "speqc artifact"
VERSION = 3
"""3: 1,024 classes of scales, not 128; 2: weights in four planes of nibbles; 1 had F and R."""
PROGRAM, WEIGHTS, TOKENIZER, MANIFEST = (
    "program.mlir",
    "weights.safetensors",
    "tokenizer.json",
    "manifest.json",
)

VIEW_CHOICE = "view_choice"
"""What the manifest calls the facts on draft views that were chosen by measurement."""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: the verified program, and where the other files lie.

    `weights_file` is None where it was compiled without weights.
    """

    path: Path
    manifest: Mapping[str, Any]
    program: ModuleOp
    weights_file: Path | None
    tokenizer: Path | None

    @property
    def weights(self) -> Path:
        """The file of the weights; raises SpeqcError where the artifact has none."""
        if self.weights_file is None:
            raise SpeqcError(
                f"{self.path}: has no weights (compiled with --no-weights): there is nothing to "
                "compute with; 'speqc simulate' times it"
            )
        return self.weights_file

    @property
    def context(self) -> int:
        """Positions that the caches can hold."""
        return module_context(self.program)

    @property
    def proved_positions(self) -> int | None:
        """Positions up to which what the compiler read off samples holds; None where none is."""
        return proved_positions(self.program)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        return frozenset(self.manifest["text"]["eos_token_ids"])

    @property
    def chat_template(self) -> str | None:
        """The model's chat template, in Jinja."""
        return self.manifest["text"]["chat_template"]

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """What the chat template may call special tokens by, such as `bos_token`."""
        return self.manifest["text"]["special_tokens"]


@dataclass(frozen=True)
class Origin:
    """What goes into an artifact beside program and weights.

    Attributes:
        files: the model's files.
        options: how it was compiled.
        eos_token_ids, chat_template, special_tokens: as in `Artifact`.
        tokenizer: the `tokenizer.json` to copy.
    """

    files: Sequence[Path]
    options: Mapping[str, Any]
    eos_token_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    special_tokens: Mapping[str, str] | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True)
class ChosenProgram:
    """A program that was chosen once its weights were known.

    Attributes:
        program: a `pe` program.
        options: those that would have led to it at once; None stands for none.
        facts: what the manifest says of the choice.
    """

    program: ModuleOp
    options: Mapping[str, Any]
    facts: Mapping[str, Any]


def check_destination(path: Path) -> None:
    """Raise SpeqcError unless `path` is free for an artifact, or holds one that may go."""
    check_place(path, is_artifact, "speqc artifact")


def is_artifact(path: Path) -> bool:
    """Whether a folder says that it is an artifact, of whatever version."""
    try:
        return json.loads((path / MANIFEST).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def write_artifact(
    path: Path,
    program: ModuleOp,
    tensors: Mapping[str, StoredTensor],
    origin: Origin,
    advance: Callable[[int], None],
    calibration: Calibration | None = None,
    choose: Callable[[Path], ChosenProgram] | None = None,
) -> None:
    """Write a `pe` program with its weights; the same input gives the same bytes.

    A program whose tensors have no bytes gives an artifact without weights. `advance` and
    `calibration` as in `weight_writer.write_weights`. `choose` is given the file of the weights
    when they are written, and says which program, with the same weights, is to read them. Leaves
    nothing behind where it raises.
    """
    check_destination(path)
    with folder_in_the_making(path) as folder:
        proved, found = None, {}
        if has_bytes(program):
            proved = write_weights(folder / WEIGHTS, program, tensors, advance, calibration)
            if choose is not None:
                chosen = choose(folder / WEIGHTS)
                program, found = chosen.program, {VIEW_CHOICE: chosen.facts}
                origin = replace(origin, options=_given({**origin.options, **chosen.options}))
        (folder / PROGRAM).write_text(print_module(program), encoding="utf-8")
        if origin.tokenizer is not None:
            shutil.copyfile(origin.tokenizer, folder / TOKENIZER)
        facts = None if calibration is None else calibration.facts()
        manifest = _manifest(program, origin, proved, facts, folder) | found
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _manifest(
    program: ModuleOp,
    origin: Origin,
    proved: int | None,
    calibration: Mapping[str, Any] | None,
    folder: Path,
) -> dict[str, Any]:
    written = sorted(folder.iterdir())
    digests = file_digests([*origin.files, *written])
    return {
        "format": FORMAT,
        "version": VERSION,
        "source": {file.name: f"sha256:{digests[file]}" for file in origin.files},
        "options": dict(origin.options),
        "target": asdict(module_target(program)),
        "context": module_context(program),
        "proved_positions": proved_positions(program),
        "text": {
            "eos_token_ids": list(origin.eos_token_ids),
            "chat_template": origin.chat_template,
            "special_tokens": dict(origin.special_tokens or {}),
        },
        "calibration": calibration,
        "recomputes_prefix": recompute_reason(program),
        "weights": None if proved is None else WEIGHTS,
        "lossless": {"verified": proved is not None, "values": proved or 0},
        "files": {
            file.name: {"bytes": file.stat().st_size, "digest": f"sha256:{digests[file]}"}
            for file in written
        },
    }


def load_artifact(path: Path) -> Artifact:
    """Read and check an artifact.

    Raises SpeqcError, one line, where the folder is no artifact, has another format version, is
    damaged or incomplete, or holds a program that is not legal.
    """
    manifest = _read_manifest(path)
    files = manifest["files"]
    large = [WEIGHTS] if WEIGHTS in files else []
    with ThreadPoolExecutor(1) as pool:
        weights = [pool.submit(_check_file, path, name, files[name]) for name in large]
        for name in files.keys() - large:
            _check_file(path, name, files[name])
        program = read_program(path / PROGRAM)
        for checked in weights:
            checked.result()
    if has_bytes(program) != bool(large):
        raise SpeqcError(
            f"{path}: {MANIFEST} and {PROGRAM} disagree on whether there are weights: compile the "
            "model again"
        )
    tokenizer = path / TOKENIZER if TOKENIZER in files else None
    return Artifact(path, manifest, program, path / WEIGHTS if large else None, tokenizer)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise SpeqcError(f"{path}: there is no such artifact")
    if not is_artifact(path):
        hint = f"; compile it first: speqc compile {path}" if path.suffix == ".onnx" else ""
        raise SpeqcError(
            f"{path}: not a speqc artifact (a folder that 'speqc compile' writes){hint}"
        )
    manifest = json.loads((path / MANIFEST).read_bytes())
    if manifest.get("version") != VERSION:
        raise SpeqcError(
            f"{path}: has format version {manifest.get('version')!r}, this speqc reads version "
            f"{VERSION}: compile the model again"
        )
    if not _is_complete(manifest):
        raise SpeqcError(f"{path}: {MANIFEST} is damaged: compile the model again")
    return manifest


def _is_complete(manifest: Mapping[str, Any]) -> bool:
    """Whether the fields that a load reads are there, with the types that it expects."""
    match manifest:
        case {
            "files": dict(files),
            "text": {
                "eos_token_ids": list(ids),
                "chat_template": str() | None,
                "special_tokens": dict(names),
            },
        }:
            # Artifacts of earlier builds do not name their weights, and have some.
            weights = manifest.get("weights", WEIGHTS)
            needed = {PROGRAM} if weights is None else {PROGRAM, WEIGHTS}
            return (
                weights in (None, WEIGHTS)
                and needed <= files.keys() <= {*needed, TOKENIZER}
                and all(isinstance(item, int) for item in ids)
                and all(isinstance(name, str) for name in names.values())
                and all(_is_file_entry(entry) for entry in files.values())
            )
    return False


def _is_file_entry(entry: object) -> bool:
    match entry:
        case {"bytes": int(), "digest": str()}:
            return True
    return False


def _check_file(folder: Path, name: str, expected: Mapping[str, Any]) -> None:
    file = folder / name
    if not file.is_file():
        raise SpeqcError(f"{folder}: {name} is missing: compile the model again")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise SpeqcError(
            f"{folder}: {name} is damaged: it has {size} bytes, the manifest says "
            f"{expected['bytes']}: compile the model again"
        )
    if f"sha256:{file_digest(file)}" != expected["digest"]:
        raise SpeqcError(
            f"{folder}: {name} is damaged: its digest is not the manifest's: "
            "compile the model again"
        )
