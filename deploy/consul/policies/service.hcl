# Rights of berth service for one service. Replace SERVICE with its name in Consul: app, or app-prod for the group prod.
#
#   sed s/SERVICE/app/ service.hcl | consul acl policy create -name berth-service-app -rules -

# Register, check, drain and deregister its instances.
service "SERVICE" { policy = "write" }

# Compare the agent's registrations with the catalog: the agent's node, and the catalog's entries for it.
agent_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }

# Each service that it binds to needs its own rule: service "redis" { policy = "read" }

# Sessions, for locks and reports of instances. They belong to the agent's node: with a token for each node,
# session "node-1" { policy = "write" } is enough, and cannot end the sessions of other nodes.
session_prefix "" { policy = "write" }

# What its operator sets: configuration with earlier versions, files, restarts.
key "berth/config/SERVICE" { policy = "read" }
key_prefix "berth/history/SERVICE/" { policy = "list" }
key_prefix "berth/files/SERVICE/" { policy = "list" }
key "berth/restart/SERVICE" { policy = "read" }

# What each instance runs, which one is changing, who may lead and who leads.
key_prefix "berth/applied/SERVICE/" { policy = "write" }
key "berth/rolling/SERVICE" { policy = "write" }
key_prefix "berth/leader/SERVICE/" { policy = "write" }
key "service/SERVICE/leader" { policy = "write" }
