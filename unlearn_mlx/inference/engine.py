"""One thread that owns the model: faces and the server ask it, and hear what it says.

mlx arrays belong to the thread that made them, so loading, toggling and generation all happen here.
What is asked at once is decoded together (decoder.py), is cancelled between two tokens, and where there is
no room for all of it, the askers (a browser's tabs, a server's clients) take turns. Should the thread's work
fail as a whole, the model is loaded anew; where a run asks for its memory, it is given up meanwhile.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from unlearn_mlx.compute.cpu_setup import prepare_cpu
from unlearn_mlx.errors import AskAgain, Cancelled, UserError
from unlearn_mlx.inference.asking import Answering, Mode, Question, start_of_next_turn
from unlearn_mlx.inference.line import Line

if TYPE_CHECKING:
    from unlearn_mlx.compute.holders import Holder
    from unlearn_mlx.inference.chat_model import ChatModel
    from unlearn_mlx.inference.decoder import Decoder
    from unlearn_mlx.inference.rows import Listener, Row, RowRequest

Result = TypeVar("Result")

CHAT_MIN_P = 0.05  # tokens less likely than this share of the likeliest are never drawn in a chat
TURNS_FORESEEN = 8  # prompts that are computed while nobody asks
LONGEST_PAUSE = 60.0  # seconds between two tries to load the model again
LOOK = 0.5  # seconds between two looks whether a run asks for the model's memory


class Engine:
    """A model and its adapters, in a thread of their own. It starts loading at once.

    ``most_rows`` is how many answers are decoded together; ``gives_up`` whether a run may have its memory.
    """

    def __init__(
        self, model_name: str, adapter: Path | None, most_rows: int | None = None, gives_up: bool = True
    ) -> None:
        self._model_name, self._adapter_folder = model_name, adapter
        self._most_rows, self._gives_up = most_rows, gives_up
        self._line: Line[Question | Row] = Line()
        self._loaded = threading.Event()
        self._error: BaseException | None = None
        self._ends_at_once = False
        self._model: ChatModel | None = None  # None until it is loaded, and while it is given up
        self._holder: Holder | None = None
        self._decoder: Decoder | None = None
        self._chats: list[Question] = []  # that are answered now
        self._foreseen: list[RowRequest] = []  # to be computed while nobody asks
        self._taken: Question | Row | None = None  # out of the line, and not yet begun
        self._was_ready = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def wait_until_ready(self, timeout: float | None = None) -> bool:
        """Wait until the model is loaded, and say whether it is; raise what went wrong."""
        ready = self._loaded.wait(timeout)
        if self._error is not None:
            self._thread.join()
            raise self._error
        return ready

    @property
    def is_restarting(self) -> bool:
        """Whether the model is being loaded anew, since the work failed."""
        return self._was_ready and not self._loaded.is_set()

    @property
    def waiting(self) -> int:
        """How many questions and rows wait for their turn."""
        return len(self._line)

    @property
    def longest_prompt(self) -> int:
        """The most tokens of a prompt that the model was made for and the memory has room for."""
        decoder = self._decoder
        return decoder.longest_prompt if decoder is not None else 0

    def answer(
        self,
        conversations: dict[Mode, list[dict[str, str]]],
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int = 0,
        strength: float = 1.0,
        adapter: Path | None = None,
        asker: str = "",
        goes_on: bool = True,
    ) -> Answering:
        """Answer one conversation a mode, decoded together.

        ``adapter`` takes the place of the engine's own. Where the conversation ``goes_on``, what was
        computed of it is kept for its next turn.

        Raises:
            UserError: where the engine was closed or could not load its model.
        """
        folder = adapter or self._adapter_folder

        def manner(mode: Mode, tokens: tuple[int, ...]) -> "RowRequest":
            from unlearn_mlx.inference.rows import RowRequest
            from unlearn_mlx.inference.sampling import Sampling

            if mode != "base" and folder is None:
                raise UserError("no adapter was given: only the base can answer")
            # The same key for all modes: at a temperature they draw the same random numbers.
            return RowRequest(
                tokens,
                max_tokens,
                Sampling(temperature, CHAT_MIN_P),
                seed=seed,
                adapter=None if mode == "base" else folder,
                strength=strength,
                is_kept=goes_on,
            )

        question = Question(conversations, manner, goes_on, asker)
        self._line.put(asker, question)
        return question.answering

    def ask(self, request: "RowRequest", listener: "Listener", asker: str = "") -> "Row":
        """Have a row decoded; ``listener`` hears of it in the engine's thread.

        Raises:
            UserError: where the engine was closed or could not load its model.
        """
        from unlearn_mlx.inference.rows import Row

        row = Row(request, listener, asker)
        self._line.put(asker, row)
        return row

    def run(self, work: "Callable[[ChatModel], Result]") -> "Future[Result]":
        """Have something done with the model in its thread, between two tokens."""
        future: Future[Result] = Future()

        def call(model: "ChatModel | None", error: BaseException | None) -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if model is None:
                    raise error or AskAgain("the model is not there: ask again")
                future.set_result(work(model))
            except BaseException as failed:
                future.set_exception(failed)
                if not isinstance(failed, Exception):
                    raise

        self._line.call(call)
        return future

    def close(self, at_once: bool = False) -> None:
        """End the thread; what was asked before is answered first, unless it is to end ``at_once``."""
        self._ends_at_once = at_once
        self._line.close(AskAgain("the model was closed: ask again"))
        self._thread.join()

    def _work(self) -> None:
        # The thread that started this one may not have been prepared: a browser's tab has its own.
        prepare_cpu()
        try:
            while self._load():
                try:
                    if not self._serve():
                        break
                    self._lend()
                except BaseException as error:  # whatever it is, the next question is to be answered
                    self._start_anew(error)
        finally:
            import mlx.core as mx

            self._unload()
            # A thread that ends with streams of its own makes mlx abort when the process ends.
            mx.clear_streams()

    def _load(self) -> bool:
        """Load the model, where there is room for it. False where there is nobody to load it for.

        Where it fails, that is everybody's to hear who waits; but for the first time it is tried again.
        """
        pause = 1.0
        while True:
            try:
                from unlearn_mlx.compute.holders import hold
                from unlearn_mlx.compute.memory import free_bytes
                from unlearn_mlx.inference.decoder import MOST_ROWS, Decoder
                from unlearn_mlx.inference.loading import chat_bytes, load_model
                from unlearn_mlx.inference.rows import RowRequest
                from unlearn_mlx.models.registry import resolve_model

                if self._line.is_closed and not len(self._line):
                    self._loaded.set()
                    return False
                source = resolve_model(self._model_name)
                self._holder = hold(chat_bytes(source), self._gives_up)
                model = self._model = load_model(source)
                decoder = self._decoder = Decoder(model, free_bytes() // 2, self._most_rows or MOST_ROWS)
                decoder.adapters.weights(self._adapter_folder)
                self._foreseen = [RowRequest(start_of_next_turn(model, []), 0)]
                self._was_ready = True
                self._loaded.set()
                return True
            except BaseException as error:  # it is the asking threads' to handle
                self._unload()
                if not self._was_ready or self._line.is_closed:
                    self._end_with(error)
                    return False
                self._refuse_waiting(error)
                self._line.wait_for_end(pause)
                pause = min(LONGEST_PAUSE, 2 * pause)

    def _serve(self) -> bool:
        """Answer what is asked, until the line is closed; True where the model is to be given up instead."""
        from unlearn_mlx.compute.memory import wired

        model, decoder, line = self._model, self._decoder, self._line
        assert model is not None and decoder is not None and self._holder is not None
        while True:
            with wired():
                self._answer_all(model, decoder)
            if self._ends_at_once:
                self._end_with(Cancelled("an answer"))
                return False
            if self._holder.asker_is_alive():
                return True
            if not line.wait(LOOK):
                return False

    def _answer_all(self, model: "ChatModel", decoder: "Decoder") -> None:
        """Answer until nobody asks; then compute what may be asked next."""
        line = self._line
        while not self._ends_at_once:
            while (call := line.take_call()) is not None:
                call(model, None)
            for waiting in line.take_gone():
                waiting.fail(Cancelled("an answer"))
            while decoder.has_room and (taken := line.take()) is not None:
                self._taken = taken
                self._begin(model, decoder, taken)
                self._taken = None
            if len(line) and not decoder.has_room and (row := decoder.make_room()) is not None:
                self._taken = row
                line.put(row.asker, row, again=True)
                self._taken = None
            if decoder.count:
                decoder.advance()
                self._chats = [chat for chat in self._chats if not self._has_ended(model, chat)]
            elif self._foreseen and not len(line) and not line.is_closed:
                self._foresee(decoder)
            elif not len(line):
                return

    def _lend(self) -> None:
        """Give the model up, since another process asked for its memory, until that has ended."""
        holder = self._holder
        assert holder is not None
        self._loaded.clear()
        self._unload()
        told = AskAgain("a run has this model's memory meanwhile: ask again once it is done")
        while holder.asker_is_alive() and not self._line.is_closed:
            self._refuse_waiting(told)
            self._line.wait(LOOK)

    def _unload(self) -> None:
        """Let go of the model and of all that was computed with it."""
        from unlearn_mlx.compute.memory import give_back

        if self._model is not None:
            self._model.release()
        self._chats, self._foreseen, self._decoder, self._model = [], [], None, None
        give_back()
        if self._holder is not None:
            self._holder.end()

    def _refuse_waiting(self, error: BaseException) -> None:
        """Tell everybody who waits that there will be no answer, and why."""
        while (call := self._line.take_call()) is not None:
            call(None, error)
        while (waiting := self._line.take()) is not None:
            waiting.fail(error)

    def _begin(self, model: "ChatModel", decoder: "Decoder", waiting: "Question | Row") -> None:
        try:
            if isinstance(waiting, Question):
                rows = waiting.begin(model)
                self._chats.append(waiting)
            else:
                rows = [waiting]
            for row in rows:
                decoder.start(row)
        except Exception as error:
            waiting.fail(error)

    def _has_ended(self, model: "ChatModel", chat: Question) -> bool:
        if chat.open and not chat.has_failed:
            return False
        try:
            self._foreseen = [*self._foreseen, *chat.next_turn(model)][-TURNS_FORESEEN:]
        except Exception:  # the next question meets it again, and says so
            self._foreseen = []
        return True

    def _foresee(self, decoder: "Decoder") -> None:
        """Compute prompts that are known already: the first use of a model costs seconds."""
        from unlearn_mlx.inference.rows import Row

        for request in self._foreseen:
            decoder.start(Row(request, lambda news: None))
        self._foreseen = []

    def _start_anew(self, error: BaseException) -> None:
        """End what is under way, and let go of the model, whose work failed as a whole."""
        self._loaded.clear()
        told = AskAgain(f"the engine failed ({error!r:.200}) and is started again: ask again")
        if self._taken is not None:
            self._taken.fail(told)
        if self._decoder is not None:
            self._decoder.fail(told)
        for chat in self._chats:
            chat.fail(told)
        self._taken = None
        self._unload()

    def _end_with(self, error: BaseException) -> None:
        """End everything that is under way or waits, with an error."""
        if not isinstance(error, Cancelled):
            self._error = error
        self._line.close(error)
        if self._decoder is not None:
            self._decoder.fail(error)
        self._refuse_waiting(error)
        self._loaded.set()
