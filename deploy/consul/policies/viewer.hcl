# Rights of who only looks: berth status, explain and events where no berth is at hand to be asked.
#
#   consul acl policy create -name berth-viewer -rules @viewer.hcl

# Which services there are, their instances and checks.
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }

# What the berths say, and which services are paused.
key_prefix "berth/status/" { policy = "list" }
key_prefix "berth/paused/" { policy = "list" }
