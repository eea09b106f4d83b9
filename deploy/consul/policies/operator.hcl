# Rights of the operator of one service: berth config, file, restart, pause and resume. Replace SERVICE by its name in Consul:
# app, or app-prod for the group prod.
#
#   sed s/SERVICE/app/ operator.hcl | consul acl policy create -name berth-operator-app -rules -
#
# A key rule is exact. A key_prefix "berth/config/app" would open the service app2 as well; with a slash at its end, as below,
# it does not.

# What the instances are to run: the configuration, files, both with the versions before, and restarts.
key "berth/config/SERVICE" { policy = "write" }
key_prefix "berth/history/SERVICE/" { policy = "write" }
key_prefix "berth/files/SERVICE/" { policy = "write" }
key "berth/restart/SERVICE" { policy = "write" }

# Whether its requests wait. For all services, and for berth pause --list: key_prefix "berth/paused/" { policy = "write" }
key "berth/paused/SERVICE" { policy = "write" }

# What they run, and who changes now.
key_prefix "berth/applied/SERVICE/" { policy = "list" }
key "berth/rolling/SERVICE" { policy = "read" }

# Which instances there are, and on which nodes.
service "SERVICE" { policy = "read" }
node_prefix "" { policy = "read" }
