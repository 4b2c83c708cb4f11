"""What the method refuses, as `ValueError` subclasses that a caller can catch one by one."""


class AbmllError(ValueError):
    """Base of every error that `abmll` raises about its input."""


class PromptTooLongError(AbmllError):
    """A prompt (with its options, or with the room asked for generation) does not fit the context."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt needs {tokens} tokens but at most {limit} fit the context")
        self.tokens, self.limit = tokens, limit

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return type(self), (self.tokens, self.limit)


class OptionsError(AbmllError):
    """The options of an example cannot be scored: an empty one, two alike, one alone, or the output is not among them."""


class SupportError(AbmllError):
    """The support set cannot be adapted to: it is empty, or mixes option tasks with free text."""


class UnsupportedModelError(AbmllError):
    """A model whose layers or projections the module-name rule does not find."""


class PosteriorMismatchError(AbmllError):
    """A posterior's tensors do not fit the configuration or the model they are used with."""


class SampleNotALoraError(AbmllError):
    """A posterior sample was asked for as a LoRA, in a noise family whose samples are none."""
