"""What the tests of the embedded models' recipe share."""

from __future__ import annotations

from typing import Any

import pytest
import training_fixtures

one_thread = training_fixtures.one_thread
tokenizer = training_fixtures.tokenizer


@pytest.fixture(params=["lite", "full"])
def small_model(request: pytest.FixtureRequest) -> Any:
    """A fresh model of either kind whose language model is just deep enough to be guided."""
    from recipe.sizes import fresh_model, mini_config

    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6}
    tokenizer = request.getfixturevalue("tokenizer")
    return fresh_model(mini_config(request.param, **sizes, num_key_value_heads=2), tokenizer, 0)
