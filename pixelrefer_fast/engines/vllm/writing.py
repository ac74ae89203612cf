"""How to answer: this package's options, and those that vLLM has besides -> vLLM's own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pixelrefer_fast.checks.values import is_finite_number, is_integer, shown
from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.planning.options import EncodeOptions, split_options

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import BeamSearchParams, StructuredOutputsParams

MOST_BEAMS = 64
_FORMATS = ("json_object", "json_schema", "regex", "choice", "grammar")
_lora_ids = itertools.count(1)
_loras: dict[str, LoRARequest] = {}


@dataclass(frozen=True)
class VllmOptions:
    """What vLLM can do that this package's own decoder does not.

    Args:
        num_beams: a search with so many beams instead of sampling, if above 1. Of the other options it takes
            max_new_tokens, temperature and n, up to so many.
        length_penalty: of beams: scores are divided by the length to this power.
        response_format: what an answer must be: {"type": "json_object"}, {"type": "json_schema", "json_schema":
            {"schema": ...}} as OpenAI has them, or {"type": "regex" | "choice" | "grammar", that name: ...}.
        bad_words: texts that answers don't contain.
        allowed_token_ids: tokens that answers consist of; None: all.
        lora: the folder of an adapter for the language model; the engine must have been loaded with
            engine_options={"enable_lora": True}.
    """

    num_beams: int = 1
    length_penalty: float = 1.0
    response_format: Mapping[str, object] | None = None
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    lora: str | None = None

    def __post_init__(self) -> None:
        if not is_integer(self.num_beams) or not 1 <= self.num_beams <= MOST_BEAMS:
            raise ValueError(f"num_beams: expected an integer from 1 to {MOST_BEAMS}, got {shown(self.num_beams)}")
        if not is_finite_number(self.length_penalty):
            raise ValueError(f"length_penalty: expected a number, got {shown(self.length_penalty)}")
        if self.response_format is not None:
            kind = self.response_format.get("type") if isinstance(self.response_format, Mapping) else None
            if kind not in ("text", *_FORMATS):
                raise ValueError(
                    f"response_format: expected a mapping with a type of {', '.join(_FORMATS)}, "
                    f"got {shown(self.response_format)}"
                )


def split(options: Mapping[str, object]) -> tuple[EncodeOptions, Generation, VllmOptions]:
    """The options of one question.

    Raises:
        ValueError: naming the option, what was expected and what came.
    """
    names = {field.name for field in fields(VllmOptions)}
    own = {name: value for name, value in options.items() if name in names}
    encode, generation = split_options({k: v for k, v in options.items() if k not in names}, EncodeOptions, Generation)
    return encode, generation, VllmOptions(**own)  # type: ignore[arg-type]  # it checks them


def sampling(
    generation: Generation, own: VllmOptions, repetition_penalty: float, top_k: int, *, streamed: bool = False
) -> SamplingParams:
    """For vLLM.

    Args:
        generation, own: the options.
        repetition_penalty, top_k: what the checkpoint says, where they do not.
        streamed: whether outputs bring what is new in them, instead of the whole when it is there.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    penalty = repetition_penalty if generation.repetition_penalty is None else generation.repetition_penalty
    return SamplingParams(
        n=generation.n,
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=top_k if generation.top_k is None else generation.top_k,
        min_p=generation.min_p,
        seed=generation.seed,
        repetition_penalty=penalty,
        presence_penalty=generation.presence_penalty,
        frequency_penalty=generation.frequency_penalty,
        logit_bias=dict(generation.logit_bias) or None,
        stop=list(generation.stop),
        stop_token_ids=list(generation.stop_token_ids),
        max_tokens=generation.max_new_tokens,
        min_tokens=generation.min_new_tokens,
        logprobs=generation.top_logprobs if generation.logprobs else None,
        structured_outputs=_grammar(own.response_format),
        bad_words=list(own.bad_words),
        allowed_token_ids=None if own.allowed_token_ids is None else list(own.allowed_token_ids),
        output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY,
    )


def beams(generation: Generation, own: VllmOptions) -> BeamSearchParams:
    """For vLLM's search.

    Raises:
        ValueError: options that it does not take.
    """
    from vllm.sampling_params import BeamSearchParams

    taken = {"max_new_tokens", "temperature", "n"}
    plain = Generation()
    other = [
        f.name for f in fields(plain) if f.name not in taken and getattr(generation, f.name) != getattr(plain, f.name)
    ]
    other += ["response_format"] * (own.response_format is not None) + ["bad_words"] * bool(own.bad_words)
    if other or generation.n > own.num_beams:
        raise ValueError(
            f"num_beams: expected max_new_tokens, temperature and n up to {own.num_beams} with it, "
            f"got {', '.join(other) or f'n={generation.n}'}"
        )
    return BeamSearchParams(
        beam_width=own.num_beams,
        max_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        length_penalty=own.length_penalty,
        include_stop_str_in_output=True,
    )


def lora_of(own: VllmOptions) -> LoRARequest | None:
    """The adapter of a question; one folder has one number in this process, by which vLLM knows it."""
    if own.lora is None:
        return None
    from vllm.lora.request import LoRARequest

    if own.lora not in _loras:
        number = next(_lora_ids)
        _loras[own.lora] = LoRARequest(f"lora-{number}", number, own.lora)
    return _loras[own.lora]


def _grammar(wanted: Mapping[str, object] | None) -> StructuredOutputsParams | None:
    from vllm.sampling_params import StructuredOutputsParams

    if wanted is None or wanted["type"] == "text":
        return None
    kind = str(wanted["type"])
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if kind == "json_schema":
        schema = wanted.get("json_schema")
        if not isinstance(schema, Mapping) or "schema" not in schema:
            raise ValueError(f"response_format: expected a schema in json_schema, got {shown(schema)}")
        return StructuredOutputsParams(json=schema["schema"])
    if kind not in wanted:
        raise ValueError(f"response_format: expected {kind!r} beside its type, got {shown(dict(wanted))}")
    return StructuredOutputsParams(**{kind: wanted[kind]})
