"""The train step compiled for an H100 on a machine without one: calls and memory.

    pip install 'jax[cuda12]'
    python tests/bench/gpu_program.py --stage scp
    python tests/bench/gpu_program.py --stage scp --attention xla
    python tests/bench/gpu_program.py --stage scp --fsdp 4 --tensor 2

XLA compiles what training would run, with JAX's CUDA plugin and NVIDIA's libraries,
but no driver. Printed are the library calls of the compiled program, cuDNN's attention
among them, and its memory on each device. What only a GPU can tell is missing: speed,
and which of several kernels is the fastest; products are left to cuBLAS.
"""

import argparse
import collections
import dataclasses
import os
import re
import sys
import time

os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # it asks the driver
os.environ["JAX_PLATFORMS"] = ""
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_triton_gemm=false"
)

from jax.experimental import topologies
from random_runs import CANDIDATES, SELECTED, STAGES

from clara_jax.config import DataConfig, OptimConfig, RunConfig, SelectionConfig
from clara_jax.model import PRESETS
from clara_jax.model.attention import ATTENTIONS
from clara_jax.sharding import batch_parts, make_mesh
from clara_jax.train.abstract_run import abstract_run

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA asks a GPU about itself."""


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(PRESETS), default="mistral_7b")
    parser.add_argument("--stage", choices=STAGES, default="scp")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--attention", choices=ATTENTIONS, default="auto")
    parser.add_argument("--remat", default="full")
    parser.add_argument("--fsdp", type=int, default=1, help="GPUs that share weights")
    parser.add_argument("--tensor", type=int, default=1, help="and products")
    options = parser.parse_args()
    count = options.fsdp * options.tensor
    try:
        target = topologies.get_topology_desc(
            "h100", "cuda", target_config=H100, topology=f"1x1x{count}"
        )
    except Exception as error:
        sys.exit(
            f"no CUDA plugin ({str(error).splitlines()[0]}): see the command above"
        )
    mesh = make_mesh(fsdp=options.fsdp, tensor=options.tensor, devices=target.devices)
    if options.batch % batch_parts(mesh):
        sys.exit(f"--batch {options.batch}: give a multiple of {batch_parts(mesh)}")
    shape = PRESETS[options.shape]
    if options.layers:
        shape = dataclasses.replace(shape, num_layers=options.layers)
    config = RunConfig(
        stage=options.stage,
        workdir="unused",
        backbone=f"random:{options.shape}",
        dtype="bfloat16",
        param_dtype="bfloat16",
        remat=options.remat,
        attention=options.attention,
        selection=SelectionConfig(top_k=1 if options.stage == "scp" else SELECTED),
        data=DataConfig(
            batch_size=options.batch,
            prompt_max_length=options.prompt,
            candidates=CANDIDATES,
            cache_vectors=options.stage == "end_to_end",
        ),
        optim=OptimConfig(steps=1000),
    )
    run = abstract_run(config, shape, shape.vocab_size)
    begin = time.perf_counter()
    program = run.lower(mesh).compile()
    taken = time.perf_counter() - begin
    print(
        f"{options.shape}, {shape.num_layers} layers, {options.stage}, batch "
        f"{options.batch}, attention {options.attention}, remat {options.remat}, "
        f"for {count} x {target.devices[0].device_kind}: compiled in {taken:.0f} s"
    )
    calls = re.findall(r'custom_call_target="([^"]+)"', program.as_text())
    for name, number in sorted(collections.Counter(calls).items()):
        print(f"  {number:4d} calls of {name}")
    sizes = program.memory_analysis()
    print(
        f"  on each device: {sizes.argument_size_in_bytes / 1e9:.2f} GB of arguments, "
        f"{sizes.temp_size_in_bytes / 1e9:.2f} GB besides"
    )


if __name__ == "__main__":
    main()
