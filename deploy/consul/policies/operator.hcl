# Rights of one service's operator: berth config, file, restart, pause and resume. Replace SERVICE with its name in Consul:
# app, or app-prod for the group prod.
#
#   sed s/SERVICE/app/ operator.hcl | consul acl policy create -name berth-operator-app -rules -
#
# A key rule is exact. A key_prefix "berth/config/app" would also allow the service app2; with a final slash, as below, it does
# not.

# What the instances should run: configuration and files, with their earlier versions, and restarts.
key "berth/config/SERVICE" { policy = "write" }
key_prefix "berth/history/SERVICE/" { policy = "write" }
key_prefix "berth/files/SERVICE/" { policy = "write" }
key "berth/restart/SERVICE" { policy = "write" }

# Pauses of its requests. For all services, and for berth pause --list: key_prefix "berth/paused/" { policy = "write" }
key "berth/paused/SERVICE" { policy = "write" }

# What the instances run, and which one is changing.
key_prefix "berth/applied/SERVICE/" { policy = "list" }
key "berth/rolling/SERVICE" { policy = "read" }

# The instances and their nodes.
service "SERVICE" { policy = "read" }
node_prefix "" { policy = "read" }
