"""The chat's engine: made when it is first needed, for one model at a time."""

from pathlib import Path

from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.engine import Answering, Engine, Mode


class Talking:
    """Holds the engine. Loading runs in the engine's own thread, so nothing here waits but ``close``."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._model_name = ""
        self._answering: Answering | None = None

    def prepare(self, model_name: str) -> None:
        """Begin to load a model, unless it is the one that is there."""
        if self._engine is None or self._model_name != model_name:
            self.close()
            self._model_name = model_name
            self._engine = Engine(model_name, None)

    def is_ready(self) -> bool:
        """Whether the model is loaded; raises what went wrong."""
        if self._engine is None:
            return False
        try:
            return self._engine.wait_until_ready(timeout=0)
        except BaseException:
            self._engine = None  # the next try loads anew
            raise

    def ask(
        self,
        conversations: dict[Mode, list[dict[str, str]]],
        adapter: Path | None,
        temperature: float,
        max_tokens: int,
        strength: float,
        seed: int,
    ) -> Answering:
        """Ask what ``prepare`` prepared; a question asked while it loads waits for it.

        Raises:
            UserError: before ``prepare``, or where the model could not be loaded.
        """
        if self._engine is None:
            raise UserError("the model is not there: ask again in a moment")
        self._answering = self._engine.answer(conversations, temperature, max_tokens, seed, strength, adapter)
        return self._answering

    def close(self) -> None:
        """End the engine's thread; an answer under way is stopped first."""
        if self._answering is not None:
            self._answering.cancel()
        if self._engine is not None:
            self._engine.close()
        self._engine, self._answering = None, None
