"""A GGUF file with its tensors dequantised to float32; all other fields stay."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np

ALL_F32 = 0  # general.file_type


def dequantise(source: Path, target: Path) -> int:
    """Write `target`; returns the number of tensors."""
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        raise ValueError(f"{source} names no architecture")
    writer = gguf.GGUFWriter(target, architecture.contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = ALL_F32 if field.name == "general.file_type" else field.contents()
        kind = field.types[0]
        writer.add_key_value(field.name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return len(reader.tensors)


def main() -> int:
    """Read the command line."""
    if len(sys.argv) != 3 or not Path(sys.argv[1]).is_file():
        print("usage: scripts/dequantise_gguf IN.gguf OUT.gguf", file=sys.stderr)
        return 2
    print(f"{dequantise(Path(sys.argv[1]), Path(sys.argv[2]))} tensors in float32: {sys.argv[2]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
