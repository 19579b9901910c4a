"""The chat's engine: made when it is first needed, for one model at a time."""

import threading

from unlearn_mlx.errors import UserError
from unlearn_mlx.inference.engine import Engine


class ChatEngine:
    """Holds the one engine of this process. Loading runs in the engine's own thread.

    Threads may share it: who prepares a model waits for the other that does so.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self.model_name = ""  # that is loaded, or about to be

    def prepare(self, model_name: str) -> Engine:
        """The engine with a model; it takes the place of another model's, whose answers end first."""
        with self._lock:
            engine = self._engine
            if engine is None or self.model_name != model_name:
                self._engine, self.model_name = None, model_name
                if engine is not None:
                    engine.close()  # before the next: two models may not fit
                engine = self._engine = Engine(model_name, None)
            return engine

    @property
    def engine(self) -> Engine:
        """What ``prepare`` prepared; never waits. A question asked while it loads waits for it.

        Raises:
            UserError: before ``prepare``.
        """
        engine = self._engine
        if engine is None:
            raise UserError("the model is not there: ask again in a moment")
        return engine

    def is_ready(self) -> bool:
        """Whether the model is loaded; raises what went wrong, and the next ``prepare`` loads anew."""
        engine = self._engine
        if engine is None:
            return False
        try:
            return engine.wait_until_ready(timeout=0)
        except BaseException:
            if self._engine is engine:
                self._engine = None
            raise

    def close(self) -> None:
        """Stop what is answered, and end the engine's thread."""
        with self._lock:
            engine, self._engine, self.model_name = self._engine, None, ""
            if engine is not None:
                engine.close(at_once=True)
