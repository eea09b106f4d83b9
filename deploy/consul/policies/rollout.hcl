# Rights to roll out one service: berth rollout. Replace SERVICE with its name in Consul: app, or app-prod for the group prod.
#
#   sed s/SERVICE/app/ rollout.hcl | consul acl policy create -name berth-rollout-app -rules -
#
# A token may have several of these policies for several services.

# Take its instances out of service and back; read their checks. Consul has no narrower rule: this one also allows registering
# instances.
service "SERVICE" { policy = "write" }
node_prefix "" { policy = "read" }

# The lock and progress of a rollout. Consul's service names differ from compose's; to allow only one project:
# key_prefix "berth/rollout/PROJECT/" { policy = "write" }
key_prefix "berth/rollout/" { policy = "write" }
session_prefix "" { policy = "write" }

# What the load balancers serve.
key_prefix "berth/serving/" { policy = "list" }
