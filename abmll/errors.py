"""Errors that `abmll` raises: subclasses of `ValueError` that a caller can catch one by one."""


class AbmllError(ValueError):
    """Base of every error that `abmll` raises about its input."""


class PromptTooLongError(AbmllError):
    """Error for a prompt that does not fit the context.

    Its options count too, or the tokens that are to be generated behind it.
    """

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt needs {tokens} tokens but at most {limit} fit the context")
        self.tokens, self.limit = tokens, limit

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return type(self), (self.tokens, self.limit)


class MissingColumnError(AbmllError):
    """Error for a table without the column of inputs, or that of outputs, as `holds` says."""

    def __init__(self, message: str, holds: str) -> None:
        super().__init__(message)
        self.holds = holds

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.holds)


class OptionsError(AbmllError):
    """Error for options that cannot be scored.

    One is empty, two are equal, there is only one, or the output is not among them.
    """


class SupportError(AbmllError):
    """Error for a support that cannot be adapted to.

    It is empty, has an empty output, mixes examples with and without options, or has one label
    only.
    """


class FitDivergedError(AbmllError):
    """An adaptation left the finite numbers: its losses or its values are infinite or no numbers."""


class UnsupportedModelError(AbmllError):
    """Error for a model whose layers or projections the rule of module names does not find."""


class PosteriorMismatchError(AbmllError):
    """Error for a posterior that does not fit the configuration or the model it is used with."""


class SampleNotALoraError(AbmllError):
    """Error for a sample asked for as a LoRA, in a noise family whose samples are not LoRAs."""
