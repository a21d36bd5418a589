"""Network policies."""

from conftest import unique
from test_snapshots import sh
from test_sync import refused
from vercel.sandbox.sync import NetworkPolicy
from vercel.sandbox import (
    NetworkPolicyMatcher,
    NetworkPolicyRequestMatcher,
    NetworkPolicyResponse,
    NetworkPolicyRule,
    NetworkPolicySubnets,
    NetworkPolicyTransform,
)

CUSTOM = NetworkPolicy.custom(
    {
        "api.rules.test": [
            NetworkPolicyRule(
                match=NetworkPolicyRequestMatcher(path=NetworkPolicyMatcher.starts_with("/v1/")),
                response=NetworkPolicyResponse(status_code=200, body="from the rule", content_type="text/plain"),
            ),
            NetworkPolicyRule(transform=[NetworkPolicyTransform(headers={"authorization": "Bearer s3cr3t"})]),
        ],
        "*.example.test": [],
    },
    NetworkPolicySubnets(allow=["192.0.2.0/24"]),
)
ASK = "python3 -c \"import urllib.request as u; print(u.urlopen('https://api.rules.test/v1/x', timeout=20).read().decode())\""


class TestNetworkPolicies:
    def test_enforced_and_read_back(self, client):
        with client.create_sandbox(name=unique("policy"), network_policy=CUSTOM, execution_time_limit=60) as sandbox:
            got = sandbox.network_policy
            assert (got.mode, got.allowed_domains) == ("custom", ("api.rules.test", "*.example.test"))
            assert got.subnets.allow == ("192.0.2.0/24",)
            assert [(r.domain, r.header_names) for r in got.injection_rules] == [("api.rules.test", ("authorization",))]
            assert [(r.domain, r.status_code) for r in got.response_rules] == [("api.rules.test", 200)]
            assert "s3cr3t" not in repr(got)
            sh(sandbox, "echo '198.51.100.1 api.rules.test' | sudo tee -a /etc/hosts")
            assert sh(sandbox, ASK) == "from the rule"
            sandbox.update(network_policy=NetworkPolicy.deny_all())
            assert sandbox.network_policy.mode == "deny-all"
            assert sandbox.current_session.network_policy.mode == "deny-all"
            assert sh(sandbox, ASK + " 2>/dev/null || echo refused") == "refused"

    def test_bad_ones(self, client):
        with refused(400, "bad_request"):
            client.create_sandbox(network_policy=NetworkPolicy.custom({"1.2.3.4": []}))
