"""`benchmarks/streaming.py`: a streamed cut takes no more memory than was said, and far less than the checkpoint."""

import dataclasses
from typing import Any

import pytest
from scripts import load_script


@pytest.fixture(scope="module")
def streaming() -> Any:
    return load_script("benchmarks/streaming.py")


@pytest.mark.slow
def test_a_checkpoint_of_a_gigabyte_takes_the_memory_that_was_said(streaming, tmp_path):
    small = {"num_experts": 16, "moe_intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4}
    shape = dataclasses.replace(streaming.SHAPES["qwen3-30b-a3b"], values=small, experts=16, made_layers=6)
    streaming.SHAPES["small"] = shape
    row = streaming.measured("small", tmp_path)
    assert row.largest_block_bytes == 2 * 16 * 3 * 768 * 2048
    assert 10**9 < row.checkpoint_bytes < 2 * 10**9
    assert row.peak_anonymous_bytes < row.expected_peak_bytes < 0.9 * row.checkpoint_bytes
    assert not list(tmp_path.iterdir())
