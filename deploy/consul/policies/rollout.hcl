# Rights of who rolls out one service: berth rollout. Replace SERVICE by its name in Consul: app, or app-prod for the group prod.
#
#   sed s/SERVICE/app/ rollout.hcl | consul acl policy create -name berth-rollout-app -rules -
#
# A token may have several of these policies, for several services.

# Take its instances out of service and back; see whether they pass their checks. Consul has no narrower rule: this one also
# lets it register instances.
service "SERVICE" { policy = "write" }
node_prefix "" { policy = "read" }

# The lock of a rollout, and how far it is. Consul's names of services are not compose's; to allow one project only:
# key_prefix "berth/rollout/PROJECT/" { policy = "write" }
key_prefix "berth/rollout/" { policy = "write" }
session_prefix "" { policy = "write" }

# What the balancers serve.
key_prefix "berth/serving/" { policy = "list" }
