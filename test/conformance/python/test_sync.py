"""The synchronous client."""

import hashlib
import io
import subprocess
import time

import pytest
from conftest import sync_client, unique
from vercel.sandbox.sync import (
    NetworkPolicy,
    ProcessSignal,
    ProcessStatus,
    SandboxApiError,
    SandboxFilesystemCommandError,
    SandboxFilesystemWriteError,
    SandboxPathNotFoundError,
    SandboxQueryByName,
    SandboxResources,
    SandboxStatus,
    TagFilter,
)


def refused(status, code):
    """Expects an error of the API with a status and code."""

    class Refused:
        def __enter__(self):
            self.raises = pytest.raises(SandboxApiError)
            self.info = self.raises.__enter__()
            return self.info

        def __exit__(self, *exc):
            caught = self.raises.__exit__(*exc)
            assert (self.info.value.status_code, self.info.value.code) == (status, code), str(self.info.value)
            return caught

    return Refused()


class TestSandboxes:
    def test_a_new_sandbox(self, client):
        name = unique("py")
        with client.create_sandbox(
            name=name,
            execution_time_limit=90,
            tags={"suite": "python"},
            resources=SandboxResources(vcpus=2),
            network_policy=NetworkPolicy.allow_all(),
            persistent=False,
        ) as sandbox:
            assert sandbox.name == name
            assert sandbox.status == SandboxStatus.RUNNING
            assert sandbox.cwd == "/vercel/sandbox"
            assert (sandbox.vcpus, sandbox.memory) == (2, 4096)
            assert sandbox.execution_time_limit.total_seconds() == 90
            assert sandbox.persistent is False
            assert sandbox.tags == {"suite": "python"}
            assert sandbox.current_session_id.startswith("sbx_")
            assert client.get_sandbox(name=name).current_session_id == sandbox.current_session_id
        with refused(404, "not_found"):
            client.get_sandbox(name=name)

    def test_get_or_create(self, client):
        name = unique("once")
        first, created = client.get_or_create_sandbox(name=name, execution_time_limit=60)
        try:
            assert created
            second, created = client.get_or_create_sandbox(name=name)
            assert not created
            assert second.current_session_id == first.current_session_id
            with refused(409, "conflict"):
                client.create_sandbox(name=name)
        finally:
            first.destroy()

    def test_queries(self, client):
        prefix = unique("page")
        names = [f"{prefix}-{end}" for end in "abc"]
        made = [client.create_sandbox(name=name, tags={"end": name[-1]}, execution_time_limit=60) for name in names]
        try:
            query = SandboxQueryByName(name_prefix=prefix, sort_order="asc")
            assert [s.name for s in client.query_sandboxes(query=query, page_size=2)] == names
            tagged = SandboxQueryByName(name_prefix=prefix, tag=TagFilter(key="end", value="b"))
            assert [s.name for s in client.query_sandboxes(query=tagged)] == [names[1]]
            sessions = list(client.query_sessions(name=names[0], page_size=1))
            assert [s.id for s in sessions] == [made[0].current_session_id]
            assert sessions[0].sandbox_name == names[0]
        finally:
            for sandbox in made:
                sandbox.destroy()

    def test_stop_and_resume(self, client):
        with client.create_sandbox(execution_time_limit=60) as sandbox:
            before = sandbox.current_session_id
            sandbox.stop()
            assert sandbox.status == SandboxStatus.STOPPED
            result = sandbox.run_process("echo", ["again"], capture_output=True)
            assert result.stdout == "again\n"
            assert sandbox.current_session_id != before

    def test_update_and_extend(self, client):
        with client.create_sandbox(execution_time_limit=60) as sandbox:
            sandbox.update(tags={"new": "1"})
            assert client.get_sandbox(name=sandbox.name).tags == {"new": "1"}
            session = sandbox.extend_execution_time_limit(30)
            assert session.execution_time_limit.total_seconds() == 90
            with refused(400, "sandbox_timeout_invalid"):
                sandbox.extend_execution_time_limit(10 * 365 * 24 * 3600)

    def test_what_is_not_built(self, client):
        for field, params in {
            "region": {"region": "iad1"},
        }.items():
            with refused(501, "not_implemented") as info:
                client.create_sandbox(**params)
            assert info.value.data["error"]["field"] == field

    def test_credentials(self):
        for change, status, code in (
            ({"token": "wrong"}, 401, "unauthorized"),
            ({"team_id": "team_other"}, 403, "forbidden"),
            ({"project_id": "prj_other"}, 403, "forbidden"),
        ):
            client = sync_client(**change)
            try:
                with refused(status, code):
                    list(client.query_sandboxes())
            finally:
                client.close()


class TestProcesses:
    def test_run(self, sandbox):
        result = sandbox.run_process("sh", ["-c", "echo out; echo err >&2; exit 3"], capture_output=True)
        assert (result.stdout, result.stderr, result.returncode) == ("out\n", "err\n", 3)
        with pytest.raises(subprocess.CalledProcessError):
            sandbox.run_process("false", check=True)

    def test_environment_directory_and_sudo(self, sandbox):
        script = 'echo "$FROM $KEPT"; pwd; id -un'
        result = sandbox.run_process("sh", ["-c", script], env={"FROM": "command"}, cwd="/tmp", capture_output=True)
        assert result.stdout == "command sandbox\n/tmp\nvercel-sandbox\n"
        result = sandbox.run_process("sh", ["-c", 'id -u; echo "$HOME $KEPT"'], sudo=True, capture_output=True)
        assert result.stdout == "0\n/root sandbox\n"

    def test_output_streams(self, sandbox):
        stdout, stderr = io.StringIO(), io.StringIO()
        sandbox.run_process("sh", ["-c", "echo ü€😀; echo err >&2"], stdout=stdout, stderr=stderr)
        assert (stdout.getvalue(), stderr.getvalue()) == ("ü€😀\n", "err\n")

    def test_large_output(self, sandbox):
        line = "grün € 😀 漢字"
        result = sandbox.run_process("sh", ["-c", f"yes '{line}' | head -n 100000"], capture_output=True)
        assert result.stdout == f"{line}\n" * 100_000

    def test_silence(self, sandbox):
        result = sandbox.run_process("sh", ["-c", "sleep 2.2; echo over; exit 3"], capture_output=True)
        assert (result.returncode, result.stdout) == (3, "over\n")

    def test_missing_program_and_kill_after(self, sandbox):
        with refused(400, "executable_not_found"):
            sandbox.run_process("no-such-program")
        with refused(400, "executable_not_found"):
            sandbox.create_process("no-such-program")
        started = time.monotonic()
        assert sandbox.run_process("sleep", ["60"], kill_after=0.5).returncode == 137
        assert time.monotonic() - started < 30

    def test_standard_input(self, sandbox):
        done = sandbox.run_process("cat", input="héllo", capture_output=True)
        assert (done.returncode, done.stdout) == (0, "héllo")
        data = bytes(range(256)) * 12_000  # more than a call, the window and a pipe hold
        summed = sandbox.run_process("sha256sum", input=data, capture_output=True)
        assert summed.stdout.split()[0] == hashlib.sha256(data).hexdigest()
        assert sandbox.run_process("cat", capture_output=True).stdout == ""

        process = sandbox.create_process("sh", ["-c", "while read line; do echo got $line; done; echo end"], stdin=subprocess.PIPE)
        process.stdin.write(b"one\n")
        process.stdin.write(b"two\n")
        process.stdin.close()
        out, _ = process.communicate()
        assert out == "got one\ngot two\nend\n"

        deaf = sandbox.create_process("true", stdin=subprocess.PIPE)
        deaf.wait()
        with pytest.raises(BrokenPipeError):
            deaf.stdin.write(b"x")

    def test_created_process(self, sandbox):
        process = sandbox.create_process("sh", ["-c", "for i in 1 2 3; do echo $i; sleep 0.1; done; echo e >&2; exit 5"])
        assert process.returncode is None
        assert process.stdout.readline() == "1\n"
        assert process.communicate() == ("2\n3\n", "e\n")
        assert process.wait() == 5
        found = sandbox.get_process(process.id)
        assert (found.status, found.returncode) == (ProcessStatus.EXITED, 5)
        assert found.communicate() == ("1\n2\n3\n", "e\n")

    def test_signals(self, sandbox):
        process = sandbox.create_process("sleep", ["1000"])
        process.kill()
        assert process.wait() == 137
        process = sandbox.create_process("sh", ["-c", "trap 'exit 6' USR1; echo up; while :; do sleep 0.05; done"])
        assert process.stdout.readline() == "up\n"
        process.send_signal(ProcessSignal.SIGUSR1)
        assert process.wait() == 6
        process.terminate()

    def test_query_processes(self, sandbox):
        process = sandbox.create_process("sleep", ["1000"])
        running = {p.id: p for p in sandbox.query_processes()}
        assert running[process.id].returncode is None
        process.kill()
        process.wait()

    def test_errors(self, sandbox):
        with refused(404, "not_found"):
            sandbox.get_process("cmd_000000000000000000000000")
        with refused(400, "bad_request"):
            sandbox.run_process("a\0b")


class TestFiles:
    def test_bytes_and_text(self, sandbox):
        data = bytes(range(256)) * 1000
        sandbox.fs.write_bytes("dir/data.bin", data)
        assert sandbox.fs.read_bytes("dir/data.bin") == data
        assert sandbox.fs.read_bytes("data.bin", cwd="/vercel/sandbox/dir") == data
        sandbox.fs.write_text("/tmp/python.txt", "grün €\n")
        assert sandbox.fs.read_text("/tmp/python.txt") == "grün €\n"

    def test_streams(self, sandbox):
        data = b"0123456789" * 200_000
        with sandbox.fs.open("stream.bin", "wb", size=len(data)) as out:
            for start in range(0, len(data), 64 << 10):
                out.write(data[start : start + (64 << 10)])
        with sandbox.fs.open("stream.bin", "rb") as source:
            assert source.read(10) == b"0123456789"
            assert source.read() == data[10:]
        with sandbox.fs.open("lines.txt", "w", permissions=0o600) as out:
            out.write("one\ntwo €\n")
        with sandbox.fs.open("lines.txt") as source:
            assert list(source) == ["one\n", "two €\n"]
        result = sandbox.run_process("stat", ["-c", "%a %U", "lines.txt"], capture_output=True)
        assert result.stdout == "600 vercel-sandbox\n"

    def test_batch(self, sandbox):
        with sandbox.fs.batch(cwd="/vercel/sandbox/batch") as batch:
            for i in range(50):
                batch.write_text(f"{i}.txt", str(i))
        assert len(sandbox.fs.listdir("batch")) == 50

    def test_directories(self, sandbox):
        sandbox.fs.mkdir("a/b/c")
        sandbox.fs.mkdir("a/b/c")
        assert sandbox.fs.is_dir("a/b/c")
        with pytest.raises(SandboxPathNotFoundError):
            sandbox.fs.mkdir("missing/parent", recursive=False)
        sandbox.fs.write_text("a/file", "x")
        assert sorted((e.path, e.kind) for e in sandbox.fs.listdir("a")) == [("b", "directory"), ("file", "file")]
        sandbox.fs.rename("a/file", "a/moved")
        assert sandbox.fs.is_file("a/moved")
        with pytest.raises(SandboxFilesystemCommandError):
            sandbox.fs.remove("a")
        sandbox.fs.remove("a", recursive=True)
        assert not sandbox.fs.exists("a")
        sandbox.fs.remove("a", missing_ok=True)

    def test_what_is_missing_or_forbidden(self, sandbox):
        with pytest.raises(SandboxPathNotFoundError):
            sandbox.fs.read_bytes("missing")
        with pytest.raises(SandboxFilesystemWriteError):
            sandbox.fs.write_text("/usr/bin/planted", "x")


def test_users_are_apart(sandbox):
    alice = sandbox.create_user("pyalice")
    bob = sandbox.create_user("pybob")
    alice.fs.write_text("secret", "of alice")
    assert alice.fs.read_text("secret") == "of alice"
    assert bob.run_process("cat", ["/home/pyalice/secret"]).returncode != 0


def test_interactive(sandbox):
    script = "stty -echo; stty size; read line; stty size; echo got $line; exit 4"
    with sandbox.open_interactive("sh", ["-c", script], cols=100, rows=40) as terminal:
        stream = io.BufferedReader(terminal.stream)
        assert stream.readline() == b"40 100\r\n"
        terminal.resize(132, 50)
        terminal.stream.write(b"hello\r")
        assert stream.read() == b"50 132\r\ngot hello\r\n"
        assert terminal.wait(timeout=30) == 4
