"""Prompt embeddings -> text, for one prompt or for many at once."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pixelrefer_fast.checks.values import is_integer, shown
from pixelrefer_fast.decoding.cache import default_limit
from pixelrefer_fast.decoding.engine import Engine, Schedule
from pixelrefer_fast.decoding.options import Event, Generation, Step
from pixelrefer_fast.decoding.prefill_graphs import CapturedPrefills
from pixelrefer_fast.decoding.prefixes import Boundary, PrefixCache, PromptEmbeds
from pixelrefer_fast.decoding.qwen import LanguageModel
from pixelrefer_fast.decoding.sampling import signed
from pixelrefer_fast.decoding.sequence import Sequence, texts
from pixelrefer_fast.decoding.slots import Slots
from pixelrefer_fast.decoding.step_graphs import StepKey
from pixelrefer_fast.decoding.text import Detokenizer
from pixelrefer_fast.device.graphs import GRAPH_BYTES, GraphStore
from pixelrefer_fast.device.processes import PerProcess
from pixelrefer_fast.ops import kernels_serve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

MAX_RUNNING = 64
PREFILL_TOKENS = 16384
# Prompts between two steps. A product of so many rows is bound by arithmetic (an H200 is from about 200 rows on), so
# that smaller chunks would make prompts slower and larger ones no faster; of a 2B model one is 3 TFLOP, some 5 ms.
CHUNK_TOKENS = 1024
SHARED = 16  # tokens: computing fewer costs less than finding them
PREFIX_BYTES = 512 * 2**20
BLOCK = {"cuda": 64, "cpu": 32}  # tokens
AHEAD = {"cuda": True, "cpu": False}  # whether a step's output is read while the next one runs; a CPU waits for none


class _Own:
    """What a decoder has in one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engine: Engine | None = None
        self.settings: tuple[object, ...] = ()  # of the decoder, that the engine was made with

    def idle_engine(self) -> Engine | None:
        """The engine, if there is one.

        Raises:
            RuntimeError: something is being decoded.
        """
        if self.engine is not None:
            self.engine.tidy()
            if self.engine.busy:
                raise RuntimeError("decoder: expected nothing to be decoded, got sequences that are not done")
        return self.engine


class Decoder:
    """Runs a Qwen2 causal LM from prompt embeddings.

    Everything that is asked of one decoder, from whatever thread, is decoded together: `submit` queues a prompt, and
    whoever waits for an answer advances all of them. What is asked together never changes an answer (in float32; a
    device's low precision rounds differently for other batches).

    Args:
        llm: a Qwen2ForCausalLM of transformers.
        tokenizer: its tokenizer.
        generation_config: of its checkpoint: eos_token_id is used, and repetition_penalty and top_k by requests that
            do not say.
        backend: who computes the operations.

    Raises:
        ValueError: the repetition_penalty or top_k is no number.

    Attributes:
        max_running: sequences at once; more wait.
        cache_bytes: that keys and values may take; None: a share of what is free at the first use (80 % on a CUDA
            device, 25 % on a CPU). Memory is taken as it is needed.
        prefix_bytes: of them, what prefixes of prompts may hold when their prompts are done.
        graph_bytes: device memory that captured prompts and steps may keep (CUDA graphs), which `warmup` captures; 0:
            none is captured; None: 1 GiB on a CUDA device whose kernels read the cache in place, 0 elsewhere.

    Another value counts from the next prompt or `warmup` on that comes while nothing is decoded; what is captured is
    captured anew by `warmup` only.
    """

    def __init__(
        self,
        llm: Qwen2ForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: Mapping[str, object],
        backend: str = "auto",
    ) -> None:
        self.llm = llm
        self.tokenizer = tokenizer
        self.language_model = LanguageModel(llm, backend)
        self.max_running = MAX_RUNNING
        self.cache_bytes: int | None = None
        self.prefix_bytes = PREFIX_BYTES
        self.graph_bytes: int | None = None
        self.max_prefill_tokens = PREFILL_TOKENS
        self.shared_tokens = SHARED
        ends = generation_config.get("eos_token_id") or []
        self.end_ids: frozenset[int] = frozenset(
            [tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        )
        penalty = generation_config.get("repetition_penalty") or 1.0
        if not isinstance(penalty, (int, float)):
            raise ValueError(f"repetition_penalty: expected a number, got {shown(penalty)}")
        self.repetition_penalty = float(penalty)
        top_k = generation_config.get("top_k") or 0
        if not isinstance(top_k, int):
            raise ValueError(f"top_k: expected an integer, got {shown(top_k)}")
        self.top_k = top_k
        self._detokenizer = Detokenizer(tokenizer)
        self._by_process = PerProcess(_Own)

    def __getstate__(self) -> dict[str, object]:
        """A copy decodes by itself: what runs and what is cached stays with this one."""
        return self.__dict__ | {"_by_process": PerProcess(_Own)}

    @property
    def _own(self) -> _Own:
        return self._by_process.get()

    @property
    def _engine(self) -> Engine | None:
        return self._own.engine

    @property
    def captured(self) -> bool:
        """Whether prompts or steps were captured, which other settings would make void."""
        engine = self._engine
        return engine is not None and engine.captured

    @property
    def context_length(self) -> int:
        return self.llm.config.max_position_embeddings

    def submit(
        self,
        prompt: PromptEmbeds | torch.Tensor,
        options: Generation,
        *,
        streamed: bool = False,
        keep_logits: bool = False,
    ) -> Sequence:
        """Queue a prompt; nothing runs before somebody waits for an answer or calls `advance`.

        Args:
            prompt: embeddings (L, C), with or without boundaries of shared prefixes.
            options: how to decode.
            streamed: whether pieces of the text will be asked for.
            keep_logits: whether `Sequence.steps` will be asked for.

        Raises:
            ValueError: the prompt is no prompt, longer than the model's context, or than the cache; the options want
                several answers, or name tokens that there are not.
        """
        options = self._resolved(options)
        given = prompt if isinstance(prompt, PromptEmbeds) else PromptEmbeds(prompt)
        limit = self._limit(given, options)
        engine = self._running_engine()
        most = engine.capacity
        if len(given) + limit > most:
            raise ValueError(
                f"prompt: expected at most {most} tokens with its answer, which is what the cache has room for, "
                f"got {len(given)} and up to {limit}"
            )
        seed = secrets.randbits(63) if options.seed is None else signed(int(options.seed))
        ends = self.end_ids | frozenset(options.stop_token_ids)
        sequence = Sequence(given, options, limit, seed, ends, self._detokenizer, self.advance, streamed, keep_logits)
        engine.submit(sequence)
        return sequence

    def submit_each(self, prompt: PromptEmbeds, options: Generation) -> list[Sequence]:
        """Queue the `n` answers to a prompt, which is computed once; their seeds follow each other.

        Raises:
            ValueError: as `submit`.
        """
        if options.n > 1:
            # all but the last token, whose logits each of them needs
            everything = Boundary(len(prompt) - 1, secrets.token_bytes(32))
            prompt = replace(prompt, boundaries=(*prompt.boundaries, everything))
        seeds = [None if options.seed is None else (int(options.seed) + i) % 2**64 for i in range(options.n)]
        return [self.submit(prompt, replace(options, n=1, seed=seed)) for seed in seeds]

    def advance(self) -> bool:
        """One round of everything that is submitted; False when there is nothing to do.

        Memory that runs out makes rounds smaller; a prompt that fails by itself carries its error. Any other exception
        (an interrupt, say) leaves all sequences where they can go on at the next call.
        """
        engine = self._engine
        return engine is not None and engine.advance()

    def steps(self, embeds: torch.Tensor, options: Generation) -> Iterator[Step]:
        """Decode one prompt token by token, the end token included, with the raw logits of each.

        Args:
            embeds: (L, C) prompt embeddings.
            options: how to decode.

        Raises:
            ValueError: the prompt is longer than the model's context.
            FloatingPointError: the logits are not finite (a float16 overflow, say).
        """
        yield from self.submit(embeds, options, keep_logits=True).steps()

    def stream(self, prompt: PromptEmbeds | torch.Tensor, options: Generation) -> Iterator[str]:
        """Pieces of text that join to the answer's; a character that spans tokens comes whole.

        Raises:
            As `submit`, at once; as `Sequence.pieces` on the way.
        """
        return texts(self.events(prompt, options))

    def events(self, prompt: PromptEmbeds | torch.Tensor, options: Generation) -> Generator[Event, None, None]:
        """An event for each token, and one for the end.

        Raises:
            As `stream`.
        """
        given = prompt if isinstance(prompt, PromptEmbeds) else PromptEmbeds(prompt)
        self._limit(given, options)
        self._resolved(options)
        return self._streamed(given, options)

    def text(self, tokens: Iterable[int]) -> str:
        """The answer's text, without special tokens and surrounding white space."""
        return self._detokenizer(tokens).strip()

    def counts(self) -> dict[str, int]:
        """What runs and waits; steps, readbacks, tokens and prefill passes so far; graphs, where there are any."""
        engine = self._engine
        return {} if engine is None else engine.counts()

    def memory(self) -> dict[str, int]:
        """Bytes of the cache, of its limit, of kept prefixes and of graphs, and how often prefixes were used."""
        engine = self._engine
        return {} if engine is None else engine.memory()

    def clear(self) -> None:
        """Give the cache's memory back and forget kept prefixes, which new weights make necessary.

        Raises:
            RuntimeError: something is being decoded.
        """
        own = self._own
        with own.lock:
            own.idle_engine()
            own.engine = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Decode from an empty cache and without captures within the block; then go on with what there was before.

        Raises:
            RuntimeError: something is being decoded, before the block or at its end.
        """
        own = self._own
        with own.lock:
            before = own.idle_engine(), own.settings
            own.engine = None
        try:
            yield
        finally:
            with own.lock:
                own.idle_engine()
                own.engine, own.settings = before

    def warmup(self) -> None:
        """Capture prompts and steps where they are to be (`graph_bytes`), so that no request waits for it; again after
        `clear` and where settings have changed.

        The cache takes its memory now and keeps it: `cache_bytes`, or room for 2,048 tokens of each of `max_running`
        sequences where that is less.

        Raises:
            RuntimeError: something is being decoded.
        """
        self._running_engine().warm_up()

    def _streamed(self, prompt: PromptEmbeds, options: Generation) -> Generator[Event, None, None]:
        yield from self.submit(prompt, options, streamed=True).events()

    def _limit(self, prompt: PromptEmbeds, options: Generation) -> int:
        """Tokens that the answer may have."""
        if not isinstance(prompt.embeds, torch.Tensor) or prompt.embeds.ndim != 2 or not len(prompt):
            given = tuple(prompt.embeds.shape) if isinstance(prompt.embeds, torch.Tensor) else shown(prompt.embeds)
            raise ValueError(f"prompt: expected embeddings of shape (tokens, width), got {given}")
        room = self.context_length - len(prompt)
        if room < 1:
            raise ValueError(f"prompt: expected fewer than {self.context_length} tokens, got {len(prompt)}")
        return min(int(options.max_new_tokens), room)

    def _resolved(self, options: Generation) -> Generation:
        """Options of one answer, with what the checkpoint says where they leave it open."""
        if options.n != 1:
            raise ValueError(f"n: expected 1 for a single answer, got {options.n}; ask_batch gives several")
        vocabulary = self.language_model.config.vocab_size
        for name, tokens in (("logit_bias", options.logit_bias), ("stop_token_ids", options.stop_token_ids)):
            largest = max(tokens, default=0)
            if largest >= vocabulary:
                raise ValueError(f"{name}: expected token ids below {vocabulary}, got {largest}")
        most = self.context_length  # no answer is longer, and tensors hold no integer of any size
        return replace(
            options,
            max_new_tokens=min(options.max_new_tokens, most),
            min_new_tokens=min(options.min_new_tokens, most),
            top_k=min(self.top_k if options.top_k is None else options.top_k, vocabulary),
            repetition_penalty=(
                self.repetition_penalty if options.repetition_penalty is None else options.repetition_penalty
            ),
        )

    def _running_engine(self) -> Engine:
        own = self._own
        with own.lock:
            model = self.language_model
            place, settings = (model.device, model.dtype), self._settings()
            engine = own.engine
            if engine is not None and own.settings != settings and not engine.busy:
                engine = own.engine = None  # its memory is free before the next one takes some
            if engine is None or engine.place != place:
                engine = own.engine = self._new_engine()
                own.settings = settings
            return engine

    def _settings(self) -> tuple[object, ...]:
        """What an engine is made with."""
        return (
            *(self.max_running, self.max_prefill_tokens, self.shared_tokens),
            *(self.cache_bytes, self.prefix_bytes, self.graph_bytes, self.end_ids),
            id(self.language_model),
        )

    def _default_graph_bytes(self) -> int:
        """None where the definition would read the whole table of blocks in each captured step."""
        model = self.language_model
        return GRAPH_BYTES if kernels_serve(model.device, model.backend) else 0

    def _new_engine(self) -> Engine:
        graph_bytes = self._default_graph_bytes() if self.graph_bytes is None else self.graph_bytes
        for name, value, least in (
            ("max_running", self.max_running, 1),
            ("max_prefill_tokens", self.max_prefill_tokens, 1),
            ("prefix_bytes", self.prefix_bytes, 0),
            ("graph_bytes", graph_bytes, 0),
        ):
            if not is_integer(value) or value < least:
                raise ValueError(f"{name}: expected an integer of at least {least}, got {shown(value)}")
        model = self.language_model
        kind = model.device.type if model.device.type in BLOCK else "cuda"
        limit = default_limit(model.device) if self.cache_bytes is None else int(self.cache_bytes)
        pool = model.new_pool(BLOCK[kind], limit)
        slots = Slots(
            model,
            pool,
            size=self.max_running,
            width=pool.needed(self.context_length),
            vocabulary=model.config.vocab_size,
            ends=sorted(self.end_ids),
        )
        graphs: GraphStore[StepKey] | None = GraphStore(graph_bytes) if graph_bytes else None
        if graphs is not None and (reason := graphs.unusable(model.device)):
            raise ValueError(f"graph_bytes: expected 0 on {model.device}, got {graph_bytes}: {reason}")
        schedule = Schedule(
            slots=self.max_running,
            prefill_tokens=self.max_prefill_tokens,
            chunk_tokens=min(CHUNK_TOKENS, self.max_prefill_tokens),
            ahead=AHEAD[kind],
            shared=self.shared_tokens,
        )
        prefills = None if graphs is None else CapturedPrefills(model, pool, graphs, graph_bytes)
        return Engine(model, pool, PrefixCache(pool, self.prefix_bytes), slots, schedule, graphs, prefills)
