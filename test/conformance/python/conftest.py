"""The public Python SDK, pointed at the server that the environment names."""

import os
import secrets

import pytest
from vercel.sandbox import SandboxClient, SandboxCredentials, SandboxServiceOptions
from vercel.sandbox.sync import SandboxServiceOptions as SyncSandboxServiceOptions
from vercel.sandbox.sync import SyncSandboxClient

WANTED = ("SKERRY_URL", "SKERRY_TOKEN", "SKERRY_TEAM", "SKERRY_PROJECT")


def pytest_sessionstart(session):
    missing = [name for name in WANTED if not os.environ.get(name)]
    if missing:
        pytest.exit(f"set {', '.join(missing)} to run this suite against a server", returncode=2)


def credentials(**change):
    values = {
        "token": os.environ["SKERRY_TOKEN"],
        "team_id": os.environ["SKERRY_TEAM"],
        "project_id": os.environ["SKERRY_PROJECT"],
    }
    return SandboxCredentials(**{**values, **change})


def base_url():
    return os.environ["SKERRY_URL"].rstrip("/") + "/api"


def sync_client(**change):
    options = SyncSandboxServiceOptions(base_url=base_url(), credentials_factory=lambda: credentials(**change))
    return SyncSandboxClient.create(options=options)


def async_client(**change):
    async def factory():
        return credentials(**change)

    return SandboxClient.create(options=SandboxServiceOptions(base_url=base_url(), credentials_factory=factory))


def unique(prefix):
    return f"{prefix}-{secrets.token_hex(6)}"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def client():
    client = sync_client()
    yield client
    client.close()


@pytest.fixture(scope="module")
def sandbox(client):
    """One sandbox for the tests of a module; it is destroyed after them."""
    with client.create_sandbox(execution_time_limit=120, env={"FROM": "sandbox", "KEPT": "sandbox"}) as sandbox:
        yield sandbox
