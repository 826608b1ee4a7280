"""When the watchdog takes a run for dead: on a scripted server, whose time passes only while the watchdog sleeps."""

from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from flows import automations, watchdog

LIVE, DEAD, MUTE = (UUID(int=number) for number in (1, 2, 3))


class Server:
    """Answers as Prefect's client does; `beats` says how many heartbeats of a run it has had after so many seconds."""

    def __init__(self, beats, away=range(0)):
        self.beats, self.away, self.now_s = beats, away, 0.0

    def sleep(self, seconds):
        self.now_s += seconds

    def monotonic(self):
        return self.now_s

    def read_flow_runs(self, **_):
        if self.now_s in self.away:  # the client tries again until the server is back
            self.now_s = float(self.away.stop)
        return [SimpleNamespace(id=run_id) for run_id in self.beats if self.beats[run_id](self.now_s) is not None]

    def read_events(self, asked, limit):
        run_id = UUID(asked.resource.id[0].removeprefix("prefect.flow-run."))
        return SimpleNamespace(total=self.beats[run_id](self.now_s))


def every_30_s(now_s):
    return 1 + now_s // 30


def never_again(now_s):
    return 7


@pytest.mark.parametrize(
    ("beats", "away", "expected", "after_s"),
    [
        ({LIVE: every_30_s}, range(0), [], 30),
        ({LIVE: every_30_s, DEAD: never_again, MUTE: lambda _: 0}, range(0), [DEAD], 45),
        ({LIVE: lambda now_s: None if now_s > 30 else 3}, range(0), [], 35),  # it has ended, in whatever way
        # Back after ten minutes, the server hears of a run again only as that has noticed.
        ({LIVE: lambda now_s: 8 if now_s > 650 else 7, DEAD: never_again}, range(20, 620), [DEAD], 665),
    ],
    ids=["live", "one dead", "ended", "server away"],
)
def test_a_run_is_dead_if_it_is_silent_while_the_server_listens(monkeypatch, beats, away, expected, after_s):
    server = Server(beats, away)
    monkeypatch.setattr(watchdog, "time", server)
    assert watchdog.silent(cast(Any, server)) == expected
    assert server.now_s == after_s


def test_the_server_itself_judges_no_run(monkeypatch):
    made = []
    monkeypatch.setattr(automations, "_put", lambda _client, _name, trigger, action: made.append((trigger, action)))
    automations.watch(cast(Any, None), UUID(int=4))
    assert {action.type for _, action in made} == {"run-deployment"}
