"""scratchlm: pretrain a small language model from scratch; raw text in, a model that talks out.

The road, each stop in the module that owns it:

    1   document               str with source and id                      text.documents
    2   kept document          str                                         text.cleaning
    3   ids                    list[int], each < 65,536                    text.tokenizer
    4   bin on disk, mixed     (N,) uint16                                 data.bins, order by data.mixture
    5   window                 (T + 1,) uint16, chosen by (seed, position) data.windows
    6   batch                  inputs_BT, targets_BT int64                 data.pretraining
    7   logits                 (B, T, V), never whole in training          model.gpt
    8   loss                   scalar, nats a token                        training.task, model.loss
    9   checkpoint             one file, enough for everything after       model.checkpoint
    10  new ids, then text     Iterator[int], str                          model.generate, inference.completion
"""

__version__ = "0.1.0"
