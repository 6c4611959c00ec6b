"""A config in, ConvBERT models out: assembly of convbert.layers with Transformers-shaped forwards.

Shapes: B batch, C choices, L sequence length, E embedding_size, H hidden_size, N attention heads of a
mixed block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import Self

from convbert import layers
from convbert.activations import ACTIVATIONS
from convbert.checkpoints import (
    Checkpoint,
    LoadReport,
    check_saving,
    fitted,
    load_into,
    located,
    own_settings,
    read_config,
    read_weights,
    save_weights,
    without_mismatched,
)
from convbert.config import ConvBertConfig, is_rate
from convbert.errors import ConfigError, InputError
from convbert.losses import class_loss, inferred_problem, span_loss, text_loss
from convbert.outputs import EncoderOutput, LogitsOutput, SpanOutput

logger = logging.getLogger(__name__)


class _Uninitialised(TorchFunctionMode):
    """Skips what ``nn.init`` fills on the meta device, where nothing is to be filled.

    normal_, which embeddings call, would import torch's compiler there, for seconds.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__ and kwargs["tensor"].is_meta:
            return kwargs["tensor"]
        return func(*args, **kwargs)


class PreTrainedModel(nn.Module):
    """What all ConvBERT models share: initialisation, and reading and writing of checkpoint folders."""

    base_prefix: ClassVar[str] = "convbert."

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def base_model(self) -> ConvBertModel:
        """The encoder: the model itself, or the one inside a task model."""
        return cast("ConvBertModel", getattr(self, self.base_prefix.rstrip("."), self))

    @classmethod
    def from_pretrained(
        cls,
        folder_or_url: str | Path | Checkpoint,
        *,
        config: ConvBertConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        ignore_mismatched_sizes: bool = False,
        **changes: Any,
    ) -> Self:
        """The model with a checkpoint's weights, in evaluation mode.

        Reads what convbert.checkpoints reads: PyTorch's, TensorFlow's and the original TF1 files. A base
        checkpoint loads into a task model and the other way round; weights that the checkpoint lacks keep
        their random initialisation and are named in a warning, as are those left over.

        Args:
            folder_or_url: checkpoint folder, local or at any fsspec URL, or one that ``convbert.checkpoints.located``
                has found.
            config: used in place of the folder's own.
            dtype: floating-point type of the weights, or its name; "auto" is the one that config.json
                names, or the weights have. None is float32.
            torch_dtype: the older name of ``dtype``.
            ignore_mismatched_sizes: keep the random initialisation of weights that the checkpoint holds in another
                shape, such as a head for other labels, and name them in a warning.
            changes: fields in place of the config's, such as ``num_labels``. Arguments of Transformers that change
                nothing here, such as ``local_files_only``, are taken too.

        Raises:
            CheckpointError: the folder holds no readable checkpoint.
            WeightsError: a weight has another shape than the config asks for.
            ConfigError: config.json describes no ConvBERT, or one that no memory holds.
            InputError: ``dtype`` is no floating-point type, or an argument of Transformers asks for what is done in
                another way here.
        """
        changes = own_settings(changes, folder_or_url)
        dtype = torch_dtype if dtype is None else dtype
        if dtype != "auto":
            dtype = _floating_point(dtype)
        checkpoint = located(folder_or_url)
        config = _checked(config) or read_config(checkpoint)
        if changes:
            config = ConvBertConfig.from_dict(config.to_dict(), **changes)
        model, report = cls.load(
            checkpoint, config=config, dtype=dtype, ignore_mismatched_sizes=ignore_mismatched_sizes
        )
        source = checkpoint.source
        if report.missing:
            fitting = "fitting weights" if ignore_mismatched_sizes else "weights"
            names = ", ".join(report.missing)
            logger.warning("%s has no %s for %s: they are random until trained", source, fitting, names)
        if report.unexpected:
            logger.warning(
                "%s holds weights that %s does not use: %s", source, cls.__name__, ", ".join(report.unexpected)
            )
        return model

    @classmethod
    def load(
        cls,
        folder_or_url: str | Path | Checkpoint,
        *,
        config: ConvBertConfig | None = None,
        dtype: torch.dtype | str | None = None,
        ignore_mismatched_sizes: bool = False,
    ) -> tuple[Self, LoadReport]:
        """As ``from_pretrained``, with the names that did not meet in place of warnings.

        What ``ignore_mismatched_sizes`` leaves out is warned of, too: its shapes stand nowhere else.
        """
        wanted = None if dtype == "auto" else _floating_point(dtype)
        checkpoint = located(folder_or_url)
        config = _checked(config) or read_config(checkpoint)
        weights = read_weights(checkpoint)
        model = cls._without_memory(config, source=checkpoint.source)
        if ignore_mismatched_sizes:
            weights, mismatched = without_mismatched(model, weights, base_prefix=cls.base_prefix)
            if mismatched:
                shapes = ", ".join(mismatched)
                logger.warning("%s holds weights of other shapes, which are left out: %s", checkpoint.source, shapes)
        found, report = fitted(model, weights, base_prefix=cls.base_prefix, source=checkpoint.source)
        if dtype == "auto":
            wanted = _saved_dtype(config, weights)
        wanted = wanted or torch.float32
        if report.missing or cls.__module__ != __name__:  # a subclass may hold tensors that no file does
            with torch.device("cpu"):
                model = cls(config).to(wanted)  # what is missing keeps its initialisation
        else:
            model.to(wanted).to_empty(device="cpu")
            model.tie_weights()
        load_into(model, found, source=checkpoint.source)
        return model.eval(), report

    @property
    def device(self) -> torch.device:
        """Where the weights lie: the first one's device."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The first weight's type."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers the weights are, tied ones counted once.

        Args:
            only_trainable: leave out weights that need no gradient.
            exclude_embeddings: leave out the tables of words, positions and token types.
        """
        tables = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if (parameter.requires_grad or not only_trainable) and not (exclude_embeddings and id(parameter) in tables)
        )

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embedding table."""
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put another word embedding table of the same size in place.

        As in Transformers, a language model's head keeps the old one until ``tie_weights`` is called.
        """
        self.base_model.embeddings.word_embeddings = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """The product with the vocabulary, of a language model only."""
        return None

    def tie_weights(self) -> None:
        """Let weights that are one be one."""

    @classmethod
    def _without_memory(cls, config: ConvBertConfig, *, source: str) -> Self:
        """The model's shapes, with no memory behind them."""
        try:
            with torch.device("meta"), _Uninitialised():
                return cls(config)
        except RuntimeError as error:
            raise ConfigError(
                f"the config of {source} asks for a tensor that no memory holds ({error}): check its sizes"
            ) from error

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        is_main_process: bool = True,
        max_shard_bytes: int | None = None,
        **others: Any,
    ) -> None:
        """Write config.json and model.safetensors, which Transformers reads, into a local folder.

        Args:
            folder: made where it is missing; config.json and weights in safetensors that lie there are replaced
                once all new files are written.
            is_main_process: False writes nothing, for of several processes that train one model one saves it.
            max_shard_bytes: most bytes of weights a file; more are cut into several files and an index.
                None writes one file.
            others: arguments of Transformers that change nothing here: ``safe_serialization=True``.

        Raises:
            CheckpointError: a URL in place of a folder, or ``max_shard_bytes`` below 1.
            InputError: an argument of Transformers asks for what is done in another way here.
        """
        check_saving(others)
        if not is_main_process:
            return
        dtype = str(self.dtype).removeprefix("torch.")
        extra = {**self.config.extra, "architectures": [type(self).__name__]}
        extra.update(dict.fromkeys(extra.keys() & {"dtype", "torch_dtype"}, dtype))
        save_weights(self, folder, config=replace(self.config, extra=extra), max_shard_bytes=max_shard_bytes)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = False
    ) -> nn.Embedding:
        """Give the vocabulary another size, and the model a config that says so.

        Ids below both sizes keep their embeddings; new ones are drawn from Normal(0, initializer_range).

        Args:
            new_num_tokens: rows of the table; None for as many as there are.
            pad_to_multiple_of: they are rounded up to a multiple of this.
            mean_resizing: False: new rows are not drawn around the mean of the old.

        Returns:
            The word embedding table.

        Raises:
            ConfigError: fewer than 1, or too few for ``pad_token_id``.
            InputError: ``mean_resizing``, or ``pad_to_multiple_of`` below 1.
        """
        if mean_resizing:
            raise InputError("mean_resizing (True) is not done here: leave it out, and set the new rows yourself")
        multiple = 1 if pad_to_multiple_of is None else pad_to_multiple_of
        if multiple < 1:
            raise InputError(f"pad_to_multiple_of ({multiple}) must be at least 1")
        wanted = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        n_tokens = -(-wanted // multiple) * multiple
        if n_tokens != self.config.vocab_size:
            self._resize(n_tokens)
        return self.get_input_embeddings()

    def _resize(self, n_tokens: int) -> None:
        config = replace(self.config, vocab_size=n_tokens)
        table = self.get_input_embeddings()
        table.weight = _resized(table.weight, n_tokens, std=config.initializer_range)
        table.num_embeddings = n_tokens
        self._reconfigure(config)

    def _reconfigure(self, config: ConvBertConfig) -> None:
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.config = config

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Recompute each block in the backward pass instead of keeping its activations.

        Args:
            gradient_checkpointing_kwargs: ``{"use_reentrant": False}``, which is so anyway.

        Raises:
            InputError: anything else.
        """
        for name, value in (gradient_checkpointing_kwargs or {}).items():
            if (name, value) != ("use_reentrant", False):
                raise InputError(f"{name} ({value!r:.80}) is none of use_reentrant=False: leave it out")
        self.base_model.encoder.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass, the default."""
        self.base_model.encoder.gradient_checkpointing = False

    def _initialise(self) -> None:
        """Normal(0, initializer_range) for every matrix, zero for biases and padding, one for norms.

        An encoder inside has done it for itself.
        """
        for child in self.children():
            for module in () if isinstance(child, PreTrainedModel) else child.modules():
                match module:
                    case nn.Linear() | nn.Conv1d() | layers.GroupedLinear():
                        nn.init.normal_(module.weight, std=self.config.initializer_range)
                        if module.bias is not None:
                            nn.init.zeros_(module.bias)
                    case nn.Embedding():
                        nn.init.normal_(module.weight, std=self.config.initializer_range)
                        if module.padding_idx is not None:
                            nn.init.zeros_(module.weight[module.padding_idx])


class ConvBertModel(PreTrainedModel):
    """The encoder without a head.

    Args:
        config: shape of the model; weights are randomly initialised.
    """

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__(config)
        self.embeddings = layers.Embeddings(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            embedding_width=config.embedding_size,
            padding_id=config.pad_token_id,
            layer_norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
        )
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
        self.encoder = layers.Encoder([_encoder_layer(config) for _ in range(config.num_hidden_layers)])
        self._initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encode a padded batch.

        Args:
            input_ids: (B, L), or give ``inputs_embeds``.
            attention_mask: (B, L) or (B, L, L), not 0 for tokens to attend to, 0 for padding; or
                (B, 1 or N, 1 or L, L): floats are added to the attention scores, booleans and integers
                are not 0 for tokens to attend to. None is all ones. A row without any token to attend to
                attends to all alike.
            token_type_ids: (B, L); None is all zeros.
            position_ids: (B, L) or (1, L); None counts from 0.
            inputs_embeds: (B, L, E), in place of the word embeddings.
            output_hidden_states: return every layer's output.
            output_attentions: return every layer's attention probabilities.

        Raises:
            InputError: neither or both of ids and embeddings, shapes that do not fit, more than
                ``max_position_embeddings`` tokens, or (found on the CPU only) an id outside its table.
        """
        given = _given(input_ids, inputs_embeds, axes="BL")
        batch_size, n_tokens = given.shape[:2]
        if n_tokens == 0:
            raise InputError("a sequence needs at least one token")
        if inputs_embeds is not None:
            _check_shape("inputs_embeds", inputs_embeds, (batch_size, n_tokens, self.config.embedding_size))
        if position_ids is None:
            if n_tokens > self.config.max_position_embeddings:
                raise InputError(
                    f"{n_tokens} tokens exceed max_position_embeddings ({self.config.max_position_embeddings}): "
                    "truncate the text or label it in windows"
                )
            position_ids = torch.arange(n_tokens, device=given.device)[None]
        if token_type_ids is None:
            token_type_ids = torch.zeros(1, n_tokens, dtype=torch.long, device=given.device)
        for name, ids in (("token_type_ids", token_type_ids), ("position_ids", position_ids)):
            _check_shape(name, ids, (batch_size, n_tokens))
        hidden = self._embed(input_ids, inputs_embeds, token_type_ids, position_ids)  # (B, L, E)
        if self.config.embedding_size != self.config.hidden_size:
            hidden = self.embeddings_project(hidden)  # (B, L, E) -> (B, L, H)
        mask = None
        if attention_mask is not None:
            mask = _additive_mask(attention_mask, hidden.dtype)
            _check_shape("attention_mask", mask, (batch_size, self.config.n_mixed_heads, n_tokens, n_tokens))
        last, hidden_states, attentions = self.encoder(
            hidden, mask, keep_hidden_states=output_hidden_states, keep_attentions=output_attentions
        )
        return EncoderOutput(last_hidden_state=last, hidden_states=hidden_states, attentions=attentions)

    def _embed(self, input_ids: Tensor | None, words: Tensor | None, types: Tensor, positions: Tensor) -> Tensor:
        try:
            if words is None:
                words = self.embeddings.word_embeddings(input_ids)
            embedded: Tensor = self.embeddings(words, positions, types)
        except IndexError as error:
            tables = (
                ("input_ids", input_ids, "vocab_size"),
                ("token_type_ids", types, "type_vocab_size"),
                ("position_ids", positions, "max_position_embeddings"),
            )
            for name, ids, field in tables:
                n_entries = getattr(self.config, field)
                if ids is not None and not 0 <= ids.min() <= ids.max() < n_entries:
                    raise InputError(
                        f"{name} reaches from {int(ids.min())} to {int(ids.max())}, but {field} ({n_entries}) "
                        f"allows 0 to {n_entries - 1}"
                    ) from error
            raise
        return embedded


class TaskModel(PreTrainedModel):
    """An encoder and what a task makes of its last hidden states: a subclass gives ``logits`` and ``loss``.

    Args:
        config: shape of the model and its labels; weights are randomly initialised.
    """

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__(config)
        self.convbert = ConvBertModel(config)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> LogitsOutput:
        """Logits of a padded batch, and the loss where ``labels`` are given, as the class describes them.

        The other arguments, and the errors, are those of ConvBertModel.
        """
        encoded = self.convbert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.logits(encoded.last_hidden_state)
        return LogitsOutput(
            loss=None if labels is None else self.loss(logits, labels),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Last hidden states (B, L, H) -> logits."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of one class a logit row; label -100 does not count. Scalar."""
        return class_loss(logits, labels)


class ConvBertForMaskedLM(TaskModel):
    """The encoder with the generator's head: which word stands behind each token.

    Logits (B, L, vocab_size), labels (B, L) word ids, -100 for tokens that do not count. The product with
    the vocabulary uses the word embeddings themselves, unless the config says ``tie_word_embeddings: false``.
    """

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__(config)
        self.generator_predictions = layers.GeneratorPredictions(
            hidden_width=config.hidden_size,
            embedding_width=config.embedding_size,
            layer_norm_eps=config.layer_norm_eps,
        )
        self.generator_lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        self._initialise()
        self.tie_weights()

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, vocab_size)."""
        return self.generator_lm_head(self.generator_predictions(hidden))

    def _resize(self, n_tokens: int) -> None:
        """The head's matrix and bias follow; the bias of new words is 0."""
        super()._resize(n_tokens)
        head = self.generator_lm_head
        head.weight = _resized(head.weight, n_tokens, std=self.config.initializer_range)
        head.bias = _resized(head.bias, n_tokens, std=0)
        head.out_features = n_tokens
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear:
        """The product with the vocabulary."""
        return self.generator_lm_head

    def tie_weights(self) -> None:
        """Let the head use the word embeddings, unless the config says ``tie_word_embeddings: false``."""
        if self.config.tie_word_embeddings:
            self.generator_lm_head.weight = self.convbert.embeddings.word_embeddings.weight


class ConvBertForSequenceClassification(TaskModel):
    """The encoder with a classification or regression head on its first token.

    Logits (B, n_labels). Labels: (B,) class indices; (B,) or (B, n_labels) floats for regression;
    (B, n_labels) zeros and ones for several labels a text. The loss follows ``config.problem_type``, or
    where that is None the number of labels and the type of ``labels``.
    """

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__(config)
        self.classifier = layers.ClassificationHead(
            hidden_width=config.hidden_size,
            n_labels=config.num_labels,
            activation=ACTIVATIONS[config.hidden_act],
            dropout=_classifier_dropout(config),
        )
        self._initialise()

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, L, H) -> (B, n_labels)."""
        return self.classifier(hidden[:, 0])

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Squared error or cross entropy, by ``config.problem_type``, which the first labels set where it is None.

        Scalar. As in Transformers, a model saved after its training says what its logits are, but for one that was
        compiled or exported without knowing: a graph changes no config.
        """
        problem = self.config.problem_type or inferred_problem(logits, labels)
        if problem != self.config.problem_type and not torch.compiler.is_compiling():
            self._reconfigure(replace(self.config, problem_type=problem))
        return text_loss(logits, labels, problem)


class ConvBertForMultipleChoice(TaskModel):
    """The encoder with a score for each choice, from a summary of its sequence.

    Inputs have one more axis, (B, C, L); logits (B, C), labels (B,) the right choice. The summary is the
    last token, which is [PAD] in a choice padded on the right, as in Transformers; ``summary_type`` and
    its siblings in the config change it.

    Raises:
        ConfigError: summary settings that cannot work.
    """

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__(config)
        self.sequence_summary = _sequence_summary(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self._initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> LogitsOutput:
        """Logits (B, C) of padded choices, all inputs (B, C, …); else as for the other classes.

        Mask, types and positions may also be (1, L), for all choices alike.
        """
        batch_size, n_choices = _given(input_ids, inputs_embeds, axes="BCL").shape[:2]
        flat = super().forward(
            _flat(input_ids),
            _flat(attention_mask),
            _flat(token_type_ids),
            _flat(position_ids),
            _flat(inputs_embeds),
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = flat.logits.view(batch_size, n_choices)  # (B·C, 1) -> (B, C)
        return replace(flat, logits=logits, loss=None if labels is None else self.loss(logits, labels))

    def logits(self, hidden: Tensor) -> Tensor:
        """(B·C, L, H) -> (B·C, 1)."""
        return self.classifier(self.sequence_summary(hidden))


class ConvBertForTokenClassification(TaskModel):
    """The encoder with a class for each token.

    Logits (B, L, n_labels), labels (B, L) class indices, -100 for tokens that do not count.
    """

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self._initialise()

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, L, H) -> (B, L, n_labels)."""
        return self.classifier(self.dropout(hidden))


class ConvBertForQuestionAnswering(PreTrainedModel):
    """The encoder with two scores for each token: that the answer begins, and that it ends there.

    Args:
        config: shape of the model; weights are randomly initialised.

    Raises:
        ConfigError: another number of labels than 2.
    """

    def __init__(self, config: ConvBertConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ConfigError(f"id2label has {config.num_labels} labels; question answering needs 2: start and end")
        self.convbert = ConvBertModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self._initialise()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> SpanOutput:
        """Start and end logits (B, L) of a padded batch; the other arguments are those of ConvBertModel.

        Args:
            start_positions, end_positions: (B,) or (B, 1) tokens where the answer begins and ends. A
                position beyond the sequence does not count; one below 0 counts as 0.

        Raises:
            InputError: only one of the positions, or inputs that ConvBertModel cannot take.
        """
        encoded = self.convbert(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        start, end = self.qa_outputs(encoded.last_hidden_state).unbind(-1)  # (B, L, 2) -> 2 x (B, L)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        elif start_positions is not None or end_positions is not None:
            raise InputError("give both start_positions and end_positions, or neither")
        return SpanOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


def _checked(config: ConvBertConfig | None) -> ConvBertConfig | None:
    if config is None or isinstance(config, ConvBertConfig):
        return config
    raise InputError(f"config ({config!r:.80}) must be a ConvBertConfig: read one with ConvBertConfig.from_pretrained")


def _floating_point(dtype: object) -> torch.dtype | None:
    """A type, or the one of that name; None for None."""
    found: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise InputError(f"dtype ({dtype!r}) must be a floating-point type such as torch.bfloat16, its name, or None")


def _saved_dtype(config: ConvBertConfig, weights: Mapping[str, Tensor]) -> torch.dtype | None:
    """The type that a config says its weights have, or that the first of them has."""
    said = config.extra.get("dtype") or config.extra.get("torch_dtype")
    return _floating_point(said or next((w.dtype for w in weights.values() if w.is_floating_point()), None))


def _encoder_layer(config: ConvBertConfig) -> layers.EncoderLayer:
    def output(in_width: int, n_groups: int) -> layers.ResidualOutput:
        return layers.ResidualOutput(
            in_width=in_width,
            hidden_width=config.hidden_size,
            n_groups=n_groups,
            layer_norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
        )

    return layers.EncoderLayer(
        attention=layers.Attention(
            mixed=layers.MixedSelfAttention(
                hidden_width=config.hidden_size,
                n_heads=config.n_mixed_heads,
                head_width=config.head_width,
                kernel_size=config.conv_kernel_size,
                attention_dropout=config.attention_probs_dropout_prob,
            ),
            output=output(config.hidden_size, n_groups=1),
        ),
        intermediate=layers.Intermediate(
            hidden_width=config.hidden_size,
            intermediate_width=config.intermediate_size,
            n_groups=config.num_groups,
            activation=ACTIVATIONS[config.hidden_act],
        ),
        output=output(config.intermediate_size, n_groups=config.num_groups),
    )


def _sequence_summary(config: ConvBertConfig) -> layers.SequenceSummary:
    """From Transformers' summary settings, which are no fields of the config but may stand in a config.json."""
    kind = getattr(config, "summary_type", "last")
    if kind not in layers.SUMMARIES:
        raise ConfigError(f"summary_type ({kind!r}) is unknown: choose one of {', '.join(layers.SUMMARIES)}")
    projected = None
    if getattr(config, "summary_use_proj", False):
        projected = config.num_labels if getattr(config, "summary_proj_to_labels", False) else config.hidden_size
        if projected != config.hidden_size:
            raise ConfigError(
                f"summary_proj_to_labels projects to {projected} labels, but the choice's score reads hidden_size "
                f"({config.hidden_size}) features: set summary_proj_to_labels to false"
            )
    activation, known = getattr(config, "summary_activation", None) or "linear", sorted(ACTIVATIONS)
    if activation not in known:
        raise ConfigError(f"summary_activation ({activation!r}) is unknown: choose one of {', '.join(known)}")
    return layers.SequenceSummary(
        hidden_width=config.hidden_size,
        kind=kind,
        projected_width=projected,
        activation=ACTIVATIONS[activation],
        first_dropout=_summary_dropout(config, "summary_first_dropout"),
        last_dropout=_summary_dropout(config, "summary_last_dropout"),
    )


def _summary_dropout(config: ConvBertConfig, name: str) -> float:
    rate = getattr(config, name, 0.0)
    if not is_rate(rate):
        raise ConfigError(f"{name} ({rate!r}) must lie between 0 and 1")
    return float(rate)


def _classifier_dropout(config: ConvBertConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


def _additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of 2, 3 or 4 dimensions -> what is added to the scores, broadcast to (B, N, L, L).

    2 and 3 dimensions as in Transformers 4.46, floats of 4 as in Transformers 5. Half of the most
    negative number hides a token as well as all of it, and cannot overflow when a score is added to it in
    float16: a row without any token stays finite.
    """
    if mask.dim() not in (2, 3, 4):
        raise InputError(f"attention_mask has {mask.dim()} dimensions: give (B, L), (B, L, L) or (B, N, L, L)")
    lowest = torch.finfo(dtype).min / 2
    if mask.dim() == 4 and mask.is_floating_point():
        return mask.to(dtype).clamp(min=lowest)
    expanded = {2: lambda: mask[:, None, None, :], 3: lambda: mask[:, None], 4: lambda: mask}[mask.dim()]()
    return torch.zeros(expanded.shape, dtype=dtype, device=mask.device).masked_fill(expanded == 0, lowest)


def _given(input_ids: Tensor | None, inputs_embeds: Tensor | None, *, axes: str) -> Tensor:
    """The one of both that is given, with the axes of ids, or one more of embeddings."""
    if (input_ids is None) == (inputs_embeds is None):
        raise InputError("give either input_ids or inputs_embeds")
    name, given = ("inputs_embeds", inputs_embeds) if input_ids is None else ("input_ids", input_ids)
    assert given is not None  # for the type checker
    wanted = axes if inputs_embeds is None else axes + "E"
    if given.dim() != len(wanted):
        raise InputError(f"{name} has the shape {tuple(given.shape)}: give ({', '.join(wanted)})")
    return given


def _flat(tensor: Tensor | None) -> Tensor | None:
    """(B, C, …) -> (B·C, …); what has two axes is for all choices alike, or flat already."""
    return tensor if tensor is None or tensor.dim() < 3 else tensor.flatten(0, 1)


def _check_shape(name: str, tensor: Tensor, full: tuple[int, ...]) -> None:
    """Refuse what does not broadcast to ``full`` with its last axis whole."""
    fits = tensor.dim() == len(full) and tensor.shape[-1] == full[-1]
    if not fits or any(size not in (1, whole) for size, whole in zip(tensor.shape, full, strict=True)):
        raise InputError(f"{name} has the shape {tuple(tensor.shape)}, which does not fit {full}")


def _resized(rows: Tensor, n_rows: int, *, std: float) -> nn.Parameter:
    """The first ``n_rows`` rows, and where there are fewer, new ones from Normal(0, std)."""
    kept = rows.detach()[:n_rows]
    added = torch.empty(n_rows - len(kept), *rows.shape[1:], dtype=rows.dtype, device=rows.device).normal_(std=std)
    return nn.Parameter(torch.cat([kept, added]), requires_grad=rows.requires_grad)
