"""Settings of one training run: data, optimizer and what happens beside the steps."""

import dataclasses
import itertools
from typing import Literal

from clara_jax.config.model import (
    Dtype,
    LoraConfig,
    MemoryConfig,
    Quantization,
    Remat,
    SelectionConfig,
)
from clara_jax.config.parsing import (
    below_one,
    check_choices,
    not_negative,
    positive,
    require,
)

Adapter = Literal["compressor", "generator", "memory", "reasoner"]
Measure = Literal["loss", "shuffled", "recall", "answers"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from and what batches look like.

    Attributes:
      train, eval: files, folders or ``hf:`` names of records; ``eval`` may be empty.
      format: ``auto`` looks at the file; else one of the names in ``data.formats``.
      fields: ``OURS=THEIRS``: what fields are called in the files, as in
        ``question=query``; dots go into nested ones.
      encoding: of text files; empty finds it.
      batch_size: questions (or documents) per optimizer step.
      doc_buckets, prompt_buckets: padded lengths, ascending; a batch takes the
        smallest that holds its longest row, or the longest length there can be. One
        program is compiled per length met; empty leaves the one longest length.
      prompt_max_length: longest prompt with its answer, in tokens.
      question_max_length: longest question for the reasoner; 0 takes doc_max_length.
      eval_batch_size: rows that an evaluator takes at a time; 0 takes batch_size.
      candidates: C, documents offered to each question; 0 takes the most that any
        record has, which reads all records once before training. Not 0 where they come
        from a corpus.
      window: batches drawn together and sorted by length before they are cut, where
        `shuffle` is on.
      shuffle: draw records in a new random order in every epoch.
      limit: use only the first so many records; 0 takes all.
      cache_vectors: end_to_end: compress every document once, before training.
      workers: threads that prepare batches.
      too_long: what to do with a question longer than its limit: ``error`` or ``cut``.
      control_tokens: whether a text that spells a control token of the tokenizer, such
        as ``</s>``, means it, as in the original; else its characters are text like
        others, as they are for ``clara_jax.load``.
    """

    train: tuple[str, ...] = ()
    eval: tuple[str, ...] = ()
    format: str = "auto"
    fields: tuple[str, ...] = ()
    encoding: str = ""
    batch_size: int = 32
    eval_batch_size: int = 0
    doc_buckets: tuple[int, ...] = (64, 128, 256, 512, 1024)
    prompt_buckets: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    prompt_max_length: int = 1024
    question_max_length: int = 0
    candidates: int = 0
    window: int = 16
    shuffle: bool = True
    limit: int = 0
    cache_vectors: bool = False
    workers: int = 2
    too_long: Literal["error", "cut"] = "error"
    control_tokens: bool = True

    def __post_init__(self) -> None:
        positive("data", self, "batch_size", "prompt_max_length", "window")
        others = "eval_batch_size question_max_length candidates limit workers"
        not_negative("data", self, *others.split())
        check_choices("data", self)
        for name in ("doc_buckets", "prompt_buckets"):
            lengths = getattr(self, name)
            ascend = all(a < b for a, b in itertools.pairwise((0, *lengths)))
            wrong = f"must ascend and be above 0, not {lengths}"
            require(ascend, f"data.{name}", wrong)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with warm-up, a schedule and clipping.

    Attributes:
      learning_rate: peak.
      schedule: ``cosine`` or ``constant``.
      warmup_fraction: share of the steps over which the rate rises from 0.
      final_fraction: the cosine's floor, as a share of the peak.
      steps: optimizer steps; 0 takes ``epochs`` passes over the data.
      accumulate: microbatches per step; must divide the batch size.
      clip_norm: largest global gradient norm; 0 does not clip.
    """

    learning_rate: float = 1e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_fraction: float = 0.03
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    steps: int = 0
    epochs: float = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        positive("optim", self, "learning_rate", "accumulate", "eps")
        not_negative("optim", self, "weight_decay", "clip_norm", "epochs", "steps")
        below_one("optim", self, "b1", "b2")
        check_choices("optim", self)
        lasts = self.steps > 0 or self.epochs > 0
        require(lasts, "optim.epochs", "or steps must be set")
        for name in ("warmup_fraction", "final_fraction"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"optim.{name}", f"must be in [0, 1], not {value}")


@dataclasses.dataclass(frozen=True)
class HooksConfig:
    """What happens beside the steps, and how often, in steps.

    Attributes:
      log_every: a line of metrics.
      eval_every: the evaluators, and once more at the end; 0 leaves only that.
      eval_first: run the evaluators on the starting state too.
      eval_limit: use only the first so many held-out records; 0 takes all.
      checkpoint_every: a full state, and one more at the end; 0 leaves only that.
      measure: what the evaluators are: ``loss`` of held-out records, ``shuffled`` (the
        same from other records' documents: what the memory is worth), ``recall`` among
        candidates, and ``answers``, decoded, which take most of the time.
      keep: how many checkpoints stay.
      max_new_tokens: longest answer an evaluator decodes.
      tensorboard, wandb: where scalars go besides ``metrics.jsonl``.
      wandb_project: of Weights & Biases; empty takes the environment's
        ``WANDB_PROJECT``, or ``clara_jax``.
      profile_steps: write a profiler trace of so many steps after the tenth.
    """

    log_every: int = 10
    eval_every: int = 0
    eval_first: bool = False
    eval_limit: int = 0
    measure: tuple[Measure, ...] = ("loss", "recall", "answers")
    checkpoint_every: int = 200
    keep: int = 2
    max_new_tokens: int = 32
    tensorboard: bool = True
    wandb: bool = False
    wandb_project: str = ""
    profile_steps: int = 0

    def __post_init__(self) -> None:
        positive("hooks", self, "log_every", "keep", "max_new_tokens")
        check_choices("hooks", self)
        others = "eval_every eval_limit checkpoint_every profile_steps"
        not_negative("hooks", self, *others.split())


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work; their sizes multiply to the devices there are.

    Attributes:
      data: copies of the weights, each with rows of its own; -1 takes the devices that
        the others leave, or, with the other axes at 1, as many as share the rows.
      fsdp: devices that share the weights, and the rows.
      tensor: devices that share every matrix product; best a divisor of the heads.
      slice: TPU slices or hosts on a slow network, each with all the weights.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slice: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            wrong = f"must be above 0, or -1 for the devices left, not {value}"
            require(value > 0 or value == -1, f"mesh.{name}", wrong)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
      stage: a name in ``clara_jax.stages.STAGES``.
      workdir: the run's folder.
      backbone: a Hugging Face folder or hub name, a ``.gguf`` file, a converted folder,
        ``random:PRESET``, or empty to take that of ``init_from``.
      tokenizer: folder or hub name, where it is not the backbone's own (``random:``).
      init_from: folder of an earlier run or converted CLaRa checkpoint; may be empty.
      reinit: adapters of ``init_from`` that start afresh (stage 2: the generator).
      train_generator: end_to_end only: whether the generator's adapter learns too.
      candidates: end_to_end only: whose documents compete for a question. ``given``:
        those of its record. ``corpus``: the ``data.candidates`` of the whole store that
        are nearest to it by the reasoner's weights of a step ago.
      store: folder or URL of a corpus that this run's frozen compressor has made, by
        ``python -m clara_jax.compress``; may be empty. With given candidates, vectors
        come from it where it has the text, and the others are compressed beforehand.
      search: how the store is searched: ``exact``, ``scann``, or ``auto``, which takes
        the index where the store has one.
      mse_weight: weight of the MSE term (paper equation for the compression loss: 0.1).
      attention: ``auto`` takes cuDNN on NVIDIA GPUs in half precision; ``xla`` and
        ``cudnn`` insist.
      dtype, remat: see `ModelConfig`.
      param_dtype: likewise; empty takes the file's.
      minutes: time that the run may take, start-up and compilation included; 0 for any.
        The learning rate then falls with the time that is left, or with the steps,
        whichever are closer to their end, and the state at the deadline is the result.
      quantize: how this run keeps the frozen layers' matrices in memory: ``none`` as
        `param_dtype` says, ``int8`` or ``nf4`` (4 bits). Files are never quantized.
    """

    stage: str
    workdir: str
    backbone: str = ""
    tokenizer: str = ""
    init_from: str = ""
    reinit: tuple[Adapter, ...] = ()
    train_generator: bool = True
    candidates: Literal["given", "corpus"] = "given"
    store: str = ""
    search: Literal["auto", "exact", "scann"] = "auto"
    seed: int = 0
    minutes: float = 0.0
    mse_weight: float = 0.1
    dtype: Dtype = "float32"
    param_dtype: Literal["", Dtype] = ""
    quantize: Quantization = "none"
    remat: Remat = "none"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    lora: LoraConfig = LoraConfig()
    memory: MemoryConfig = MemoryConfig()
    selection: SelectionConfig = SelectionConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    hooks: HooksConfig = HooksConfig()

    def __post_init__(self) -> None:
        require(bool(self.workdir), "workdir", "is empty; give a folder")
        without = "is empty and there is no init_from; name a base model"
        require(bool(self.backbone or self.init_from), "backbone", without)
        not_negative("", self, "mse_weight", "seed", "minutes")
        require(self.seed < 2**32, "seed", f"must be below 2**32, not {self.seed}")
        check_choices("", self)
        rows, parts = self.data.batch_size, self.optim.accumulate
        uneven = f"{parts} does not divide data.batch_size {rows}"
        require(rows % parts == 0, "optim.accumulate", uneven)
