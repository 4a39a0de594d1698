"""What Argo CD would make of a policy by the rule of the example: Lua 5.1, as there, with nothing but the basics."""

from __future__ import annotations

from typing import Any

from lupa.lua51 import LuaRuntime

from tests.chart import tools
from tests.chart.tools import ROOT, Object

FILE = ROOT / "examples" / "gitops" / "argocd" / "health.yaml"
KEY = "resource.customizations.health.virtnet.dev_VirtioNetworkPolicy"

# gopher-lua is Lua 5.1, and Argo CD opens no standard library for a rule unless its administrator says so.
JUDGE = """
function(rule, policy)
  return setfenv(assert(loadstring(rule)), {obj = policy, ipairs = ipairs, pairs = pairs, type = type})()
end
"""


def health(policy: Object) -> tuple[str, str]:
    """Its health and the message."""
    lua = LuaRuntime()
    judge: Any = lua.eval(JUDGE)
    found = judge(tools.read(FILE)["data"][KEY], lua.table_from(policy, recursive=True))
    return found.status, found.message
