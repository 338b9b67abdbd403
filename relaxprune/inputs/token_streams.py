"""Which tokens a layer reads: an encoder-decoder model has two streams of them, each with its own padding.

Shapes do not tell the streams apart (both may have the same length), so the model is observed once: what runs inside
the encoder, or reads what the encoder puts out (the keys and values of cross-attention), reads the encoder's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from relaxprune.models.blocks import language_model, output_heads
from relaxprune.models.layers import PrunableLayer
from relaxprune.problems.errors import RelaxPruneError

from .batches import Batch, run_model
from .padded_windows import layers_without_padding
from .streams import Streams
from .tree import flatten


def token_streams(model: nn.Module, layers: Sequence[PrunableLayer], batches: Sequence[Batch]) -> Streams:
    """Return which tokens layers read, from how the model runs where batches have padding.

    Raises:
        RelaxPruneError: padding is present and which of a layer's inputs it is cannot be told.
    """
    decoder = _decoder_layers(model, layers, batches)
    return Streams(decoder, layers_without_padding(model, layers, batches, decoder))


def _decoder_layers(model: nn.Module, layers: Sequence[PrunableLayer], batches: Sequence[Batch]) -> frozenset[str]:
    """Return the names of the layers that read the decoder's tokens, whose padding is ``decoder_attention_mask``'s.

    All other layers read the tokens of ``attention_mask``. Runs the model only for
    encoder-decoder models with padding, batch after batch until every layer was reached.

    Raises:
        RelaxPruneError: padding is present and a layer's stream cannot be told, or nothing marks the padding.
    """
    part = language_model(model)
    named = model if part is None else part
    if not getattr(getattr(named, "config", None), "is_encoder_decoder", False):
        return frozenset()
    for index, batch in enumerate(batches):
        _refuse_unmarked(batch, index)
    if all(batch.kept is None and batch.decoder_kept is None for batch in batches):
        return frozenset()
    if _stack(named, "decoder") is None and not _names_two_streams(named, batches):
        return frozenset()
    watch = _Watch(named, layers)
    for batch in batches:
        with watch.listening():
            run_model(model, batch)
        if len(watch.streams) == len(layers):
            break
    for name, streams in watch.streams.items():
        if len(streams) != 1 or None in streams:
            raise RelaxPruneError(
                f"layer {name!r} must read the tokens of either the encoder or the decoder, got "
                f"{'both' if len(streams) > 1 else 'neither'}; give batches without padding, or exclude this layer"
            )
    return frozenset(name for name, streams in watch.streams.items() if "decoder" in streams)


class _Watch:
    """Hooks that note where each call of a layer happens and what it reads.

    Attributes:
        streams: layer name -> the streams that its calls read: "encoder", "decoder", None if unknown.
    """

    def __init__(self, model: nn.Module, layers: Sequence[PrunableLayer]) -> None:
        self.streams: dict[str, set[str | None]] = {}
        self._layers = layers
        self._heads = output_heads(model)
        self._stacks = {name: _required_stack(model, name) for name in ("encoder", "decoder")}
        self._inside: str | None = None
        self._encoded: list[Tensor] = []  # held, so that their memory is not used again within the pass

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to one forward pass; hooks are removed afterwards, even after an exception."""
        encoder, decoder = self._stacks["encoder"], self._stacks["decoder"]
        handles = [
            encoder.register_forward_pre_hook(self._enter("encoder")),
            encoder.register_forward_hook(lambda _module, _args, output: self._leave(output)),
            decoder.register_forward_pre_hook(self._enter("decoder"), with_kwargs=True),
            decoder.register_forward_hook(lambda _module, _args, _output: self._leave(())),
        ]
        handles += [
            layer.module.register_forward_pre_hook(self._note(layer), with_kwargs=True) for layer in self._layers
        ]
        try:
            yield
        finally:
            self._inside = None
            self._encoded.clear()
            for handle in handles:
                handle.remove()

    def _enter(self, stack: str) -> Any:
        """Return the hook for the start of a stack; a decoder is told what was encoded, perhaps projected since."""

        def enter(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            self._inside = stack
            encoded = (kwargs or {}).get("encoder_hidden_states")
            self._encoded += flatten(encoded)[0]

        return enter

    def _leave(self, output: Any) -> None:
        """Note the end of a stack, and what the encoder puts out."""
        self._inside = None
        self._encoded += flatten(output)[0]

    def _note(self, layer: PrunableLayer) -> Any:
        """Return the hook that notes which stream a call of one layer reads."""

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = flatten((args, kwargs))[0][0]
            if any(_same_memory(inputs, encoded) for encoded in self._encoded):
                stream: str | None = "encoder"
            else:
                stream = "decoder" if layer.module in self._heads else self._inside
            self.streams.setdefault(layer.name, set()).add(stream)

        return note


def _refuse_unmarked(batch: Batch, index: int) -> None:
    """Refuse labels that the model turns into decoder tokens, with padding that no mask marks any more."""
    labels = batch.kwargs.get("labels")
    if isinstance(labels, Tensor) and batch.kwargs.get("decoder_attention_mask") is None and bool((labels < 0).any()):
        raise RelaxPruneError(
            f"labels must come with a decoder_attention_mask where they hold padding (negative entries), "
            f"got none in batch {index}"
        )


def _names_two_streams(model: nn.Module, batches: Sequence[Batch]) -> bool:
    """Return whether a model that names no decoder may have one, or is itself one that reads an encoder.

    An encoder taken out of its model keeps the whole model's config, which says ``is_encoder_decoder``.
    """
    arguments = {name for batch in batches for name in batch.kwargs}
    parts = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return "decoder" in parts or any(name.startswith(("decoder_", "encoder_")) for name in arguments)


def _stack(model: nn.Module, name: str) -> nn.Module | None:
    """Return the model's encoder or decoder by the model's own naming; None if that is the model itself or nothing."""
    getter = getattr(model, f"get_{name}", None)
    stack = getter() if callable(getter) else None
    return stack if isinstance(stack, nn.Module) and stack is not model else None


def _required_stack(model: nn.Module, name: str) -> nn.Module:
    """Return the model's encoder or decoder, or refuse the model."""
    stack = _stack(model, name)
    if stack is None:
        raise RelaxPruneError(
            f"model must name its {name} (get_{name}) so that padding can be told apart, got a "
            f"{type(model).__name__} that does not; give batches without padding"
        )
    return stack


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are views of the same memory."""
    return one.device == other.device and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
