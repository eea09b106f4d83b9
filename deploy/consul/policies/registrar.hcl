# Rights of a berth registrar: one token for each Docker host.
#
#   consul acl policy create -name berth-registrar -rules @registrar.hcl
#
# Any container can become any service, so the registrar may write all services. If your service names share a prefix, allow
# only that: service_prefix "shop-" { policy = "write" }

# Register, check, drain and deregister instances; list services.
service_prefix "" { policy = "write" }

# Compare the agent's registrations with the catalog: the agent's node, and the catalog's entries for it.
agent_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }

# Sessions, for locks and reports of instances. They belong to the agent's node: with a token for each node,
# session "node-1" { policy = "write" } is enough.
session_prefix "" { policy = "write" }

# What operators set for a service: configuration with earlier versions, files, restarts.
key_prefix "berth/config/" { policy = "read" }
key_prefix "berth/history/" { policy = "list" }
key_prefix "berth/files/" { policy = "list" }
key_prefix "berth/restart/" { policy = "read" }

# What each instance runs, which one is changing, who may lead and who leads. Consul has no rule for service/*/leader alone.
key_prefix "berth/applied/" { policy = "write" }
key_prefix "berth/rolling/" { policy = "write" }
key_prefix "berth/leader/" { policy = "write" }
key_prefix "service/" { policy = "write" }

# This berth's status for berth status, the page and other berths; the status of other berths; and the paused services for its
# own page. Everything else works without these three rules.
key_prefix "berth/status/registrar/" { policy = "write" }
key_prefix "berth/status/" { policy = "list" }
key_prefix "berth/paused/" { policy = "list" }
