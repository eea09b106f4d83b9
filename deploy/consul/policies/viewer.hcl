# Read-only rights: berth status, explain and events on a machine without a running berth.
#
#   consul acl policy create -name berth-viewer -rules @viewer.hcl

# The services, their instances and checks.
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }

# The status of all berths, and the paused services.
key_prefix "berth/status/" { policy = "list" }
key_prefix "berth/paused/" { policy = "list" }
