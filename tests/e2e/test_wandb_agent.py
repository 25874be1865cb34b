"""A real W&B agent, and real runs, against a server on the loopback address that answers what wandb asks.

Its answers are those that wandb 0.31's queries name; of what it is sent it keeps all.
"""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
import yaml

KEY = "0123456789" * 4
TRIALS = ({"lr_img": 0.5, "batch_real": 8, "augment": True}, {"lr_img": 2e-05, "batch_real": 16, "augment": False})


class Answers:
    """The state of the server: runs by id, artifacts, files, and the trials that are left."""

    def __init__(self, trials, sweep):
        self.trials, self.sweep = list(trials), sweep
        self.runs, self.history, self.artifacts, self.used, self.files, self.unknown = {}, {}, {}, [], {}, []
        self.address, self.exits = "", {}

    def graphql(self, operation, v):
        """The data of one operation, with variables `v`."""
        handler = getattr(self, operation, None)
        if handler is None:
            self.unknown.append(operation)
            return {}
        return handler(v)

    def Viewer(self, v):
        team = {"edges": [{"node": {"name": "me"}}]}
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": team}}

    def ServerInfo(self, v):
        return {"serverInfo": {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None}}

    def ServerFeaturesQuery(self, v):
        return {"serverInfo": {"features": []}}

    def SweepWithRuns(self, v):
        sweep = {"id": "s", "name": "s1", "method": "random", "state": "RUNNING", "config": self.sweep}
        return {"project": {"sweep": {**sweep, "runs": {"edges": []}}}}

    def CreateAgent(self, v):
        return {"createAgent": {"agent": {"id": "agent"}}}

    def Heartbeat(self, v):
        commands = []
        if self.trials and "true" not in v["runState"]:
            trial = self.trials.pop(0)
            args = {name: {"value": value} for name, value in trial.items()}
            commands = [{"type": "run", "run_id": f"run{len(self.trials)}", "program": "dd", "args": args}]
        elif not self.trials and "true" not in v["runState"]:
            commands = [{"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}

    def RunResumeStatus(self, v):
        return {
            "model": {"id": "p", "name": "p", "entity": {"id": "me", "name": "me"}, "bucket": self._bucket(v["name"])}
        }

    def _bucket(self, name):
        run = self.runs.get(name)
        if run is None:
            return None
        count = len(self.history.get(name, []))
        tail = json.dumps([json.dumps(row) for row in self.history.get(name, [])[-1:]])
        facts = {"summaryMetrics": json.dumps(run["summary"]), "historyTail": tail, "historyLineCount": count}
        facts |= {"eventsTail": "[]", "logLineCount": 0, "eventsLineCount": 0, "config": "{}", "tags": [], "notes": ""}
        return {"id": name, "name": name, "displayName": name, "wandbConfig": '{"t": 1}', **facts}

    def ArtifactType(self, v):
        return {"project": {"artifact": None}}

    def ArtifactByID(self, v):
        given = self.artifacts[v["id"]]
        project = {"id": "p", "internalId": "1", "name": "p", "entity": {"name": "me"}}
        sequence = {"__typename": "ArtifactSequence", "name": given["artifactCollectionNames"][0], "project": project}
        dates = dict.fromkeys(("createdAt", "updatedAt"), "2026-01-01T00:00:00Z")
        return {
            "artifact": {
                "__typename": "Artifact",
                "id": v["id"],
                "artifactSequence": sequence,
                "versionIndex": 0,
                "artifactType": {"name": given["artifactTypeName"]},
                "metadata": given.get("metadata") or "{}",
                "ttlIsInherited": False,
                "tags": [],
                "state": "COMMITTED",
                "size": 0,
                "digest": given["digest"],
                "fileCount": 1,
                "aliases": [],
                **dict.fromkeys(("description", "ttlDurationSeconds", "historyStep", "commitHash", "digestAlgorithm")),
                **dates,
            }
        }

    def OrganizationCoreWeaveOrganizationID(self, v):
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def UpsertBucket(self, v):
        fresh = v["name"] not in self.runs
        run = self.runs.setdefault(v["name"], {"summary": {}, "config": {}, "sweep": v.get("sweep")})
        run["config"] |= json.loads(v.get("config") or "{}")
        project = {"id": "p", "name": v.get("project") or "p", "entity": {"id": "me", "name": "me"}}
        bucket = {"id": v["name"], "name": v["name"], "displayName": v.get("displayName") or v["name"], "config": "{}"}
        bucket |= {"description": "", "sweepName": v.get("sweep"), "project": project, "historyLineCount": 0}
        return {"upsertBucket": {"bucket": bucket, "inserted": fresh}}

    def CreateRunFiles(self, v):
        files = [{"name": name, "uploadUrl": f"{self.address}/put/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def MarkRunFilesUploaded(self, v):
        return {"markRunFilesUploaded": {"success": True}}

    def CreateArtifact(self, v):
        given, number = v["input"], len(self.artifacts)
        self.artifacts[f"a{number}"] = given
        artifact = {"id": f"a{number}", "state": "PENDING", "digest": given["digest"]}
        sequence = {"id": f"q{number}", "latestArtifact": None}
        return {"createArtifact": {"artifact": {**artifact, "artifactSequence": sequence}}}

    def CreateArtifactManifest(self, v):
        file = {"id": "f", "uploadUrl": f"{self.address}/put/{v['artifactID']}/manifest", "uploadHeaders": []}
        manifest = {"id": v["artifactID"], "file": file if v["includeUpload"] else {"id": "f"}}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def UpdateArtifactManifest(self, v):
        name = v["artifactManifestID"]
        file = {"id": "f", "uploadUrl": f"{self.address}/put/{name}/manifest", "uploadHeaders": []}
        return {"updateArtifactManifest": {"artifactManifest": {"id": name, "file": file}}}

    def CreateArtifactFiles(self, v):
        edges = []
        for file in v["input"]["artifactFiles"]:
            name = file["artifactID"]
            put = f"{self.address}/put/{name}/{file['name']}"
            node = {"storagePath": f"{name}/{file['name']}", "uploadUrl": put, "uploadHeaders": []}
            edges.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": name}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def CommitArtifact(self, v):
        artifact = self.artifacts[v["artifactID"]]
        artifact["committed"] = True
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": artifact["digest"]}}}

    def UseArtifact(self, v):
        self.used.append(v["input"]["artifactID"])
        return {"useArtifact": {"artifact": {"id": v["input"]["artifactID"]}}}

    def stream(self, run, body):
        """What a run sends while it goes."""
        for name, part in body.get("files", {}).items():
            rows = [json.loads(line) for line in part["content"]]
            if name == "wandb-history.jsonl":
                self.history.setdefault(run, []).extend(rows)
            elif name == "wandb-summary.json":
                self.runs[run]["summary"] = rows[-1]
        if body.get("complete"):
            self.exits[run] = body.get("exitcode")
        return {"exitcode": None, "limits": {}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        pass

    @property
    def answers(self):
        return self.server.answers

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            raw = b"".join(parts)
        else:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

    def reply(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        raw = self.body()
        if self.path.endswith("/graphql"):
            call = json.loads(raw)
            operation = call.get("operationName") or re.search(r"(?:query|mutation)\s+(\w+)", call["query"])[1]
            self.reply({"data": self.answers.graphql(operation, call.get("variables") or {})})
        elif match := re.fullmatch(r"/files/[^/]*/?[^/]*/([^/]+)/file_stream", self.path):
            self.reply(self.answers.stream(match[1], json.loads(raw)))
        else:
            self.reply({})

    def do_PUT(self):
        self.answers.files[unquote(self.path.removeprefix("/put/"))] = self.body()
        self.reply({})

    def do_GET(self):
        self.reply({})


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that hangs up is no fault of the server."""


@pytest.fixture
def serve():
    """Starts servers that give out trials of a sweep."""
    servers = []

    def start(trials=(), sweep=""):
        server = Server(("127.0.0.1", 0), Handler)
        server.answers = Answers(trials, sweep)
        server.answers.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def environment(place, address):
    """The shell's without anything that names another account or server, and with this one's."""
    clean = {name: value for name, value in place.environment.items() if not name.startswith("WANDB")}
    own = {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, "HOME": str(place.path), "WANDB_SILENT": "true"}
    beside = os.path.dirname(sys.executable)  # the agent's interpreter is the first python on the path
    return clean | own | {"PATH": f"{beside}{os.pathsep}{clean['PATH']}", "WANDB_ENTITY": "me", "WANDB_PROJECT": "p"}


BRIEF = ("device=cpu", "compile=false", "student.depth=1", "student.width=4", "eval.protocol=smoke", "eval.steps=3")


@pytest.mark.slow
def test_an_agent_runs_two_trials_of_a_sweep_and_each_is_finished(place, few, serve):
    place.dd("new", "sweep", "method=dm", "ipc=1", few, "iterations=4", "eval.full=false", "to=sweep.yaml")
    table = yaml.safe_load((place.path / "sweep.yaml").read_text())
    table["command"] += BRIEF
    answers = serve(TRIALS, yaml.safe_dump(table)).answers
    fixed = {key: rule["value"] for key, rule in table["parameters"].items() if "value" in rule}
    answers.trials = [{**fixed, **trial} for trial in TRIALS]

    agent = [sys.executable, "-m", "wandb", "agent", "--count", "2", "me/p/s1"]
    env = environment(place, answers.address)
    done = subprocess.run(agent, cwd=place.path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert answers.trials == []
    assert len(list(place.runs.glob("*/*/*/*/report.json"))) == 2
    assert answers.exits == {"run0": 0, "run1": 0}
    for name, trial in zip(("run1", "run0"), TRIALS, strict=True):
        run, rows = answers.runs[name], answers.history[name]
        assert run["sweep"] == "s1"
        assert {key: run["config"][key]["value"] for key in trial} == trial
        (last,) = [row for row in rows if "eval/holdout" in row]
        assert {"eval/test", "eval/holdout_control"} <= last.keys()
        assert {"report", "images"} <= {name for row in rows for name in row}
        assert [row["it"] for row in rows if "loss" in row] == [0, 1, 2, 3]
        assert run["summary"]["eval/holdout"] == last["eval/holdout"]
    sets = [artifact for artifact in answers.artifacts.values() if artifact["artifactTypeName"] == "dataset"]
    assert len(sets) == 2
    assert all(artifact["committed"] for artifact in answers.artifacts.values())
    assert answers.unknown == [], answers.unknown


@pytest.mark.slow
def test_a_set_has_its_experts_for_ancestors(place, small, serve):
    answers = serve().answers
    env = environment(place, answers.address)
    ended = place.process("run", *small, "track=wandb", "--json", **{k: v for k, v in env.items()})
    assert ended.code == 0, ended.err
    assert ended.report["fresh"]
    (run,) = answers.runs
    assert run == (place.folder() / "wandb-id").read_text().strip()
    kinds = {artifact["artifactTypeName"]: name for name, artifact in answers.artifacts.items()}
    assert {"dataset", "experts"} <= kinds.keys()
    assert kinds["experts"] in answers.used
    assert kinds["dataset"] not in answers.used
    names = [name for name in answers.files if name.startswith(kinds["dataset"])]
    assert (
        answers.files[next(n for n in names if n.endswith("set.safetensors"))]
        == (place.folder() / "set.safetensors").read_bytes()
    )


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_as_the_same_run_and_sends_no_row_twice(place, long, serve):
    answers = serve().answers
    env = environment(place, answers.address)
    run = place.start("run", *long, "track=wandb", **env)
    killed = run.signal_when(signal.SIGKILL, lambda: any(len(rows) > 12 for rows in answers.history.values()))
    assert killed.code == -signal.SIGKILL
    ended = place.process("run", *long, "track=wandb", **env)
    assert ended.code == 0, ended.err
    assert "synthesis resumes at iteration" in ended.err
    (rows,) = answers.history.values()
    assert [row["it"] for row in rows if "loss" in row] == list(range(60))
    assert sum("eval/holdout" in row for row in rows) == 1


@pytest.mark.slow
def test_a_connection_that_is_lost_never_stops_a_run(place, small, serve):
    server = serve()
    run = place.start(
        "run", *small, "track=wandb", **environment(place, server.answers.address), WANDB_FINISH_TIMEOUT="3"
    )
    wait(lambda: server.answers.runs)
    server.shutdown()
    server.server_close()
    ended = run.end()
    assert ended.code == 0, ended.err
    assert (place.folder() / "report.json").is_file()
    assert list(place.folder().glob("wandb/run-*/run-*.wandb"))
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_service_that_crashes_never_stops_a_run(place, small, serve):
    server = serve()
    server.answers.CreateRunFiles = lambda v: {}  # of which wandb-core 0.31 dies
    env = environment(place, server.answers.address)
    ended = place.process("run", *small, "track=wandb", **env)
    assert ended.code == 0, ended.err
    assert (place.folder() / "report.json").is_file()
    (line,) = [line for line in ended.err.splitlines() if "no longer follows" in line]
    assert line.startswith("wandb no longer follows this run (")
    assert "Traceback" not in ended.err


def wait(happened):
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
