"""Run SCALE-Sim and ZigZag on one product, configured like a target of ours.

Both are packages that speqc does not need::

    pip install scalesim==3.0.0 zigzag-dse==3.9.1 six "numpy<2.4"

(ZigZag imports six without asking for it; SCALE-Sim 3.0.0 fails with NumPy 2.4 or later.)

SCALE-Sim takes its SRAM in KiB of one-byte words; all sizes are given to it in words. Weights,
activations and results have a DRAM channel of full bandwidth each. ZigZag gets a DRAM for weights
alone, as in our model activations stay on chip, double-buffered weights in SRAM and registers, one
row of weights a cycle from the SRAM into the array, and may choose the order of loops.
"""

import contextlib
import csv
import importlib
import io
import json
import logging
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from simulator_parts import WORD_BYTES, Gemm, ZigZagMapping

INSTALL = 'pip install scalesim==3.0.0 zigzag-dse==3.9.1 six "numpy<2.4"'


@dataclass(frozen=True)
class Measured:
    """A simulator's result: cycles, bytes of weights from DRAM, seconds that it took."""

    array_cycles: int
    total_cycles: int
    weight_bytes: int
    seconds: float


def check_packages() -> None:
    """End with one line if a package is missing or NumPy is too new for SCALE-Sim."""
    for package in "six", "scalesim.scale_sim", "zigzag.api":
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise SystemExit(f"{error}; this benchmark needs: {INSTALL}") from None
    major, minor = (int(part) for part in np.__version__.split(".")[:2])
    if (major, minor) >= (2, 4):
        raise SystemExit(f"SCALE-Sim fails with NumPy {np.__version__}; do: {INSTALL}")


def run_scale_sim(gemm: Gemm) -> Measured:
    """Simulate the product with SCALE-Sim, weight-stationary, in its ``USER`` bandwidth mode."""
    simulator = importlib.import_module("scalesim.scale_sim")
    with _quiet_folder() as folder:
        config, topology, layout = folder / "a.cfg", folder / "t.csv", folder / "l.csv"
        config.write_text(_scale_sim_config(gemm))
        topology.write_text(f"Layer,M,N,K,\nproduct,{gemm.m},{gemm.n},{gemm.k},\n")
        layout.write_text("Layer,\n")
        start = time.perf_counter()
        run = simulator.scalesim(
            save_disk_space=True,
            verbose=False,
            config=str(config),
            topology=str(topology),
            layout=str(layout),
            input_type_gemm=True,
        )
        run.run_scale(top_path=str(folder))
        seconds = time.perf_counter() - start
        cycles = _report_row(folder / "product" / "COMPUTE_REPORT.csv")
        accesses = _report_row(folder / "product" / "DETAILED_ACCESS_REPORT.csv")
    total = int(cycles["Total Cycles"])
    return Measured(
        array_cycles=total - int(cycles["Stall Cycles"]),
        total_cycles=total,
        weight_bytes=int(accesses["DRAM Filter Reads"]) * WORD_BYTES,
        seconds=seconds,
    )


def _scale_sim_config(gemm: Gemm) -> str:
    target = gemm.target()
    weights = gemm.scale_sim_kib // WORD_BYTES
    activations = target.activation_sram_bytes // 1024 // WORD_BYTES
    bandwidth = gemm.words_per_cycle
    # In this version the bandwidths of the two read channels are those of the layout's banks.
    sections: dict[str, dict[str, object]] = {
        "general": {"run_name": "product"},
        "architecture_presets": {
            "ArrayHeight": target.array_rows,
            "ArrayWidth": target.array_columns,
            "IfmapSramSzkB": activations,
            "FilterSramSzkB": weights,
            "OfmapSramSzkB": activations,
            "IfmapOffset": 0,
            "FilterOffset": 10**9,
            "OfmapOffset": 2 * 10**9,
            "Bandwidth": bandwidth,
            "Dataflow": "ws",
            "ReadRequestBuffer": 1,
            "WriteRequestBuffer": 1,
        },
        "layout": {
            f"{operand}{key}": value
            for operand in ("Ifmap", "Filter")
            for key, value in {
                "CustomLayout": False,
                "SRAMBankBandwidth": bandwidth,
                "SRAMBankNum": 1,
                "SRAMBankPort": 2,
            }.items()
        },
        "sparsity": {"SparsitySupport": "false"},
        "run_presets": {"InterfaceBandwidth": "USER", "UseRamulatorTrace": False},
    }
    lines: list[str] = []
    for section, entries in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in entries.items())]
    return "\n".join(lines)


def _report_row(path: Path) -> dict[str, str]:
    with path.open() as file:
        row = next(csv.DictReader(file, skipinitialspace=True))
    return {key: value for key, value in row.items() if key}


def run_zigzag(gemm: Gemm) -> tuple[Measured, ZigZagMapping]:
    """Simulate the product with ZigZag; also return the mapping that its search chose."""
    api = importlib.import_module("zigzag.api")
    with _quiet_folder() as folder:
        files = {
            "workload": _zigzag_workload(gemm),
            "accelerator": _zigzag_accelerator(gemm),
            "mapping": _zigzag_mapping(gemm),
        }
        for name, content in files.items():
            # JSON is YAML.
            (folder / f"{name}.yaml").write_text(json.dumps(content))
        start = time.perf_counter()
        _, total, results = api.get_hardware_performance_zigzag(
            **{name: str(folder / f"{name}.yaml") for name in files},
            opt="latency",
            dump_folder=str(folder / "out"),
            pickle_filename=str(folder / "out.pickle"),
            loma_show_progress_bar=False,
        )
        seconds = time.perf_counter() - start
    result = results[0][1][0][0]
    mapping = _zigzag_chosen(result)
    weights = next(op for op in result.memory_word_access if op.name == "W")
    accesses = sum(_reads(result.memory_word_access[weights][-1]))
    measured = Measured(
        array_cycles=mapping.array_cycles,
        total_cycles=int(total),
        weight_bytes=accesses * gemm.words_per_cycle * WORD_BYTES,
        seconds=seconds,
    )
    return measured, mapping


def _zigzag_chosen(result: Any) -> ZigZagMapping:
    """Read off how weights move on the two links: DRAM to SRAM and SRAM to array."""
    moves = {
        (direction.value, level): activity
        for ports in result.port_activity_collect
        for activities in ports.values()
        for activity in activities
        for operand, level, direction in [activity.served_op_lv_dir]
        if operand.name == "W"
    }
    block, shift = moves["wr_in_by_high", 1], moves["rd_out_to_low", 1]
    drain = result.systolic_drain_cycle + result.data_offloading_cycle
    return ZigZagMapping(
        blocks=block.period_count,
        block_cycles=block.real_cycle,
        tiles=shift.period_count,
        shift_cycles=shift.real_cycle,
        rows=int(result.ideal_temporal_cycle),
        drain_cycles=int(drain),
    )


def _reads(accesses: Any) -> list[int]:
    directions = importlib.import_module("zigzag.mapping.data_movement").DataDirection
    return [accesses.get(way) for way in directions if way.value.startswith("rd_out_to_low")]


def _zigzag_workload(gemm: Gemm) -> list[dict[str, object]]:
    return [
        {
            "id": 0,
            "name": "product",
            "operator_type": "Gemm",
            "equation": "O[m][n]+=I[m][k]*W[k][n]",
            "loop_dims": ["M", "K", "N"],
            "loop_sizes": [gemm.m, gemm.k, gemm.n],
            "operand_precision": {"W": 16, "I": 16, "O": 32, "O_final": 16},
            "operand_source": {},
        }
    ]


def _zigzag_mapping(gemm: Gemm) -> list[dict[str, object]]:
    target = gemm.target()
    spatial = {"D1": [f"K, {target.array_rows}"], "D2": [f"N, {target.array_columns}"]}
    links = {"O": "O", "W": "I2", "I": "I1"}
    return [{"name": "default", "spatial_mapping": spatial, "memory_operand_links": links}]


def _zigzag_accelerator(gemm: Gemm) -> dict[str, object]:
    target = gemm.target()
    rows, columns = target.array_rows, target.array_columns
    dram = gemm.words_per_cycle * WORD_BYTES * 8
    both = ["D1", "D2"]
    sums = _ports({"O, tl": 32, "O, th": 32}, {"O, fh": 32, "O, fl": 32})
    activations = _ports(
        {"I1, tl": rows * 16, "O, tl": columns * 32, "O, th": columns * 32},
        {"I1, fh": rows * 16, "O, fh": columns * 32, "O, fl": columns * 32},
    )
    weight_bits, activation_bits = target.weight_sram_bytes * 8, target.activation_sram_bytes * 8
    one_row = _ports({"I2, tl": columns * 16}, {"I2, fh": dram})
    memories = {
        "weight_register": _memory(32, ["I2"], _ports({"I2, tl": 16}, {"I2, fh": 16}), [], True),
        "sum_register": _memory(32, ["O"], sums, ["D1"]),
        "weight_sram": _memory(weight_bits, ["I2"], one_row, both, True),
        "activation_sram": _memory(activation_bits, ["I1", "O"], activations, both),
        "dram": _memory(10**13, ["I2"], _ports({"I2, tl": dram}, {"I2, fh": dram}), both),
    }
    array = {
        "unit_energy": 0.0,
        "unit_area": 1.0,
        "dimensions": both,
        "sizes": [rows, columns],
        "systolic_dimensions": both,
    }
    return {"name": target.name, "memories": memories, "operational_array": array}


def _memory(
    bits: int,
    operands: list[str],
    ports: list[dict[str, object]],
    served: list[str],
    double_buffered: bool = False,
) -> dict[str, object]:
    costs = {"r_cost": 0.0, "w_cost": 0.0, "area": 0.0, "latency": 1}
    return {
        "size": bits,
        **costs,
        "operands": operands,
        "ports": ports,
        "served_dimensions": served,
        "force_double_buffering": double_buffered,
    }


def _ports(reads: dict[str, int], writes: dict[str, int]) -> list[dict[str, object]]:
    """Return a port of its own, with its bits per cycle, for each kind of traffic."""
    return [
        {
            "name": f"{letter}_port_{number}",
            "type": kind,
            "bandwidth_min": bits,
            "bandwidth_max": bits,
            "allocation": [traffic],
        }
        for letter, kind, traffics in (("r", "read", reads), ("w", "write", writes))
        for number, (traffic, bits) in enumerate(traffics.items(), 1)
    ]


@contextlib.contextmanager
def _quiet_folder() -> Any:
    """Give a folder for a run, and keep a simulator's progress off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield Path(folder)
    finally:
        logging.disable(disabled)
