"""What a type checker says of options: mypy reads this file with the package (`make lint`) and nothing runs it.

Each ignored error must be one, since mypy warns of ignores that are not needed.
"""

from __future__ import annotations

import numpy as np

from pixelrefer_fast import Ask, PixelReferLite
from pixelrefer_fast.batching.engines import EngineModel


async def options(model: PixelReferLite, image: np.ndarray, mask: np.ndarray) -> None:
    model.ask(image, "What is <region>?", [mask], max_new_tokens=5, kmeans_seed=1, stop=["."], logit_bias={3: 1.5})
    model.ask(image, "What is <region>?", [mask], max_new_token=5)  # type: ignore[call-overload]
    model.ask(image, "What is <region>?", [mask], temperature="warm")  # type: ignore[call-overload]
    model.describe(image, [mask], temperature=0.5)
    model.describe(image, [mask], temprature=0.5)  # type: ignore[call-arg]
    model.encode(image, [mask], max_frames=8)
    model.encode(image, [mask], max_new_tokens=8)  # type: ignore[call-arg]
    model.ask_batch([Ask(image, "What is <region>?", [mask], seed=1)], top_k=4, batch_size=2)
    model.ask_batch([Ask(image, "What is <region>?", [mask], seeds=1)])  # type: ignore[call-arg]
    model.ask_iter([], topk=4)  # type: ignore[call-arg]
    await model.ask_async(image, "What is <region>?", [mask], top_p=0.5)
    await model.ask_async(image, "What is <region>?", [mask], top_p="half")  # type: ignore[call-overload]


def text(model: PixelReferLite, image: np.ndarray, mask: np.ndarray) -> str:
    return (
        model.ask(image, "What is <region>?", [mask])
        + model.ask(image, "What is <region>?", [mask], details=True).finish_reason
    )


def texts(model: EngineModel, image: np.ndarray, mask: np.ndarray) -> list[str]:
    texts = model.describe(image, [mask], num_beams=2)
    model.describe(image, [mask], num_beam=2)  # type: ignore[call-overload]
    return texts + [answer.finish_reason for answer in model.describe(image, [mask], details=True)]
