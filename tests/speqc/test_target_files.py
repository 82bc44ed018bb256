from dataclasses import asdict
from math import log
from pathlib import Path

import pytest

from speqc.runtime.target import LIMITS, Target, TargetError, from_mapping
from speqc.target_files import DEFAULT_TARGET, load_target, read_target_file, shipped_targets


def toml(**changes: object) -> str:
    """A valid target file with some values replaced, or dropped where the new value is None."""
    values = asdict(Target()) | changes
    lines = [
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        for key, value in values.items()
        if value is not None
    ]
    return "\n".join(lines) + "\n"


def message(tmp_path: Path, text: str) -> str:
    """The error that loading a file with this text gives; one line that names the file."""
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(TargetError) as caught:
        load_target(str(file))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{file}: ")
    return str(caught.value)


def test_shipped_targets() -> None:
    assert shipped_targets() == (
        "speq-128x128-hbm2",
        "speq-16x16-lpddr4x",
        "speq-32x32",
        "speq-64x64",
        "speq-64x64-one-lane",
    )
    assert DEFAULT_TARGET in shipped_targets()


def test_default_file_is_the_default_target() -> None:
    assert load_target(DEFAULT_TARGET) == Target()


def test_one_lane_differs_in_lanes_alone() -> None:
    one_lane = asdict(load_target("speq-64x64-one-lane"))
    default = asdict(Target())
    differing = {key for key, value in one_lane.items() if value != default[key]}
    assert differing == {"name", "description", "draft_lanes"}
    assert one_lane["draft_lanes"] == 1


@pytest.mark.parametrize("name", shipped_targets())
def test_shipped_files_name_themselves_and_every_source(name: str) -> None:
    file = read_target_file(name)
    assert file.target.name == name
    assert file.sources.keys() == LIMITS.keys()


@pytest.mark.parametrize("name", ["speq-64x64", "speq-64x64-one-lane", "speq-32x32"])
def test_what_is_not_known_of_the_energy_of_dram_is_said(name: str) -> None:
    file = read_target_file(name)
    assert file.target.dram_energy_picojoules_per_bit == 1200 / 64
    source = file.sources["dram_energy_picojoules_per_bit"]
    assert "1200 pJ per 64 bits" in source and "assumption" in source


@pytest.mark.parametrize("name", shipped_targets())
def test_energies_are_those_that_their_sources_give(name: str) -> None:
    target = load_target(name)
    # Horowitz, ISSCC 2014, at 45 nm: picojoules for 64 bits of SRAMs of so many KiB.
    published = {8: 10, 32: 20, 1024: 100}
    bank = target.weight_bank_bytes / 1024
    low = max(size for size in published if size <= bank)
    high = min(size for size in published if size > bank)
    place = log(bank / low) / log(high / low)
    sram = published[low] * (published[high] / published[low]) ** place / 64
    assert target.sram_energy_picojoules_per_bit == pytest.approx(sram, rel=0.01)
    # FP16 product and FP32 sum; a draft's product by the rows of its multiplier; FP32 both.
    rows = (target.draft_mantissa_bits + 1) / 11
    assert target.array_full_energy_picojoules_per_multiply_add == pytest.approx(1.1 + 0.9)
    assert target.array_draft_energy_picojoules_per_multiply_add == pytest.approx(1.1 * rows + 0.9)
    assert target.vector_energy_picojoules_per_operation == pytest.approx(3.7 + 0.9)


def test_limits_cover_the_numeric_fields() -> None:
    assert LIMITS.keys() == asdict(Target()).keys() - {"name", "description"}


def test_file_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(toml(name="mine", vector_lanes=16))
    target = load_target(str(file))
    assert (target.name, target.vector_lanes) == ("mine", 16)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TargetError, match=r"'speq-8x8'.*speq-64x64, speq-64x64-one-lane"):
        load_target("speq-8x8")


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"none\.toml: cannot read the target file: No such file"):
        load_target(str(tmp_path / "none.toml"))


def test_unknown_key_suggests_the_nearest(tmp_path: Path) -> None:
    text = message(tmp_path, toml() + "vector_lane = 64\n")
    assert "unknown key 'vector_lane'; did you mean vector_lanes?" in text


def test_unknown_key_unlike_any_lists_the_known(tmp_path: Path) -> None:
    assert "known keys: name, description, array_rows" in message(tmp_path, toml() + "zzz = 1\n")


def test_missing_key(tmp_path: Path) -> None:
    text = message(tmp_path, toml(clock_hz=None))
    assert "clock_hz is missing; expected an integer from 1 to 100000000000" in text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("array_rows", 0, "array_rows must be an integer from 1 to 65536, got 0"),
        ("array_rows", -64, "got -64"),
        ("array_rows", 64.0, "got 64.0"),
        ("array_rows", "64", "got '64'"),
        ("array_rows", "true", "got 'true'"),
        ("clock_hz", 10**15, "got 1000000000000000"),
        ("dram_latency_ns", -1, "dram_latency_ns must be an integer from 0 to 1000000000"),
        ("dram_energy_picojoules_per_bit", "nan", "must be a number from 0"),
        ("dram_energy_picojoules_per_bit", 1e6, "must be a number from 0 to 10000, got 1000000.0"),
        ("sram_energy_picojoules_per_bit", -0.5, "must be a number from 0 to 10000, got -0.5"),
        ("array_full_energy_picojoules_per_multiply_add", "inf", "must be a number"),
        ("array_draft_energy_picojoules_per_multiply_add", "true", "must be a number"),
        ("vector_energy_picojoules_per_operation", -4, "must be a number from 0 to 10000, got -4"),
        ("draft_mantissa_bits", 11, "draft_mantissa_bits must be an integer from 0 to 10, got 11"),
        ("draft_mantissa_bits", -1, "draft_mantissa_bits must be an integer from 0 to 10, got -1"),
        ("name", "", "name must be a non-empty string, got ''"),
    ],
)
def test_bad_value(tmp_path: Path, key: str, value: object, expected: str) -> None:
    assert expected in message(tmp_path, toml(**{key: value}))


@pytest.mark.parametrize("value", [True, float("nan"), float("inf"), None, []])
def test_value_that_is_no_number(value: object) -> None:
    with pytest.raises(TargetError, match="dram_energy_picojoules_per_bit must be a number"):
        from_mapping(asdict(Target()) | {"dram_energy_picojoules_per_bit": value}, "attribute")


def test_zero_where_it_means_for_free() -> None:
    free = dict.fromkeys(["dram_latency_ns", "mode_switch_cycles", "vector_latency_cycles"], 0)
    assert from_mapping(asdict(Target()) | free, "attribute").dram_latency_cycles == 0


def test_banks_must_divide_the_memory(tmp_path: Path) -> None:
    text = message(tmp_path, toml(weight_sram_banks=7))
    assert "must divide weight_sram_bytes into equal banks, got 7 banks of 524288 bytes" in text


def test_duplicate_key_names_the_line(tmp_path: Path) -> None:
    text = message(tmp_path, "array_rows = 64\narray_rows = 32\n")
    assert "(at line 2" in text
    assert text.endswith(": array_rows = 32")


def test_syntax_error_names_the_line(tmp_path: Path) -> None:
    assert "(at line 3" in message(tmp_path, 'name = "x"\n\narray_rows 64\n')


def test_integer_beyond_what_python_reads(tmp_path: Path) -> None:
    assert "not valid TOML" in message(tmp_path, "array_rows = " + "9" * 5000)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(TargetError, match="not UTF-8 text"):
        load_target(str(file))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("sources = 3", "[sources] must be a table of texts, got 3"),
        ('[sources]\nclock = "x"', "[sources]: unknown key 'clock'; did you mean clock_hz?"),
        (
            "[sources]\nclock_hz = 3",
            "[sources]: clock_hz must be where the value comes from",
        ),
    ],
)
def test_bad_sources(tmp_path: Path, table: str, expected: str) -> None:
    assert expected in message(tmp_path, toml() + table)


def test_latency_in_cycles_is_rounded_up() -> None:
    # 100 ns at 333 MHz are 33.3 cycles.
    values = asdict(Target()) | {"clock_hz": 333_000_000}
    assert from_mapping(values, "attribute").dram_latency_cycles == 34
