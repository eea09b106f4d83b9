# Rights of a berth registrar: one token for each Docker host.
#
#   consul acl policy create -name berth-registrar -rules @registrar.hcl
#
# Any container may become any service, so it may write all of them. Where yours have names of their own, give it these
# prefixes only: service_prefix "shop-" { policy = "write" }

# Register, check, drain and deregister instances; read which services there are.
service_prefix "" { policy = "write" }

# Compare what the agent has registered with the catalog: which node the agent is, and what the catalog has for it.
agent_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }

# Sessions, which hold the locks and what its instances report. They belong to the agent's node: with a token for each
# node, session "node-1" { policy = "write" } is enough.
session_prefix "" { policy = "write" }

# What operators want of a service: its configuration with the versions before, its files, its restarts.
key_prefix "berth/config/" { policy = "read" }
key_prefix "berth/history/" { policy = "list" }
key_prefix "berth/files/" { policy = "list" }
key_prefix "berth/restart/" { policy = "read" }

# What each instance runs, who changes now, who may lead, who does. Consul has no rule for service/*/leader alone.
key_prefix "berth/applied/" { policy = "write" }
key_prefix "berth/rolling/" { policy = "write" }
key_prefix "berth/leader/" { policy = "write" }
key_prefix "service/" { policy = "write" }

# What this berth knows and why, for berth status, the page and other berths; what the others say; and which services are paused, for
# its own page. Without these three rules everything else works as well.
key_prefix "berth/status/registrar/" { policy = "write" }
key_prefix "berth/status/" { policy = "list" }
key_prefix "berth/paused/" { policy = "list" }
