# Rights of berth service for one service. Replace SERVICE by its name in Consul: app, or app-prod for the group prod.
#
#   sed s/SERVICE/app/ service.hcl | consul acl policy create -name berth-service-app -rules -

# Register, check, drain and deregister its instances.
service "SERVICE" { policy = "write" }

# Compare what the agent has registered with the catalog: which node the agent is, and what the catalog has for it.
agent_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }

# Each service that it binds to needs a rule of its own: service "redis" { policy = "read" }

# Sessions, which hold the locks and what its instances report. They belong to the agent's node: with a token for each
# node, session "node-1" { policy = "write" } is enough, and cannot end the sessions of others.
session_prefix "" { policy = "write" }

# What its operator wants: the configuration with the versions before, files, restarts.
key "berth/config/SERVICE" { policy = "read" }
key_prefix "berth/history/SERVICE/" { policy = "list" }
key_prefix "berth/files/SERVICE/" { policy = "list" }
key "berth/restart/SERVICE" { policy = "read" }

# What each instance runs, who changes now, who may lead, who does.
key_prefix "berth/applied/SERVICE/" { policy = "write" }
key "berth/rolling/SERVICE" { policy = "write" }
key_prefix "berth/leader/SERVICE/" { policy = "write" }
key "service/SERVICE/leader" { policy = "write" }
