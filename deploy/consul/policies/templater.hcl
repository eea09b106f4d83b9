# Rights of a berth templater: it reads the catalog, and reports to rollouts what its proxy serves.
#
#   consul acl policy create -name berth-templater -rules @templater.hcl
#
# A custom template that reads keys needs a rule for each: key "berth/config/shop" { policy = "read" }

# The services, their instances and checks. An instance that the token may not read gets no requests.
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }

# The services paused by hand. Without this right, no service is treated as paused. The policy list is for a Consul with
# enable_key_list_policy, and includes the right to read.
key_prefix "berth/paused/" { policy = "list" }

# While berth rollout runs: its requests, and what the proxy serves, which expires with a session. Without these three rules
# everything else works, and a rollout relies on Consul's checks and on time. Sessions belong to the agent's node: with a token
# for each node, session "node-1" { policy = "write" } is enough.
key_prefix "berth/rollout/" { policy = "list" }
key_prefix "berth/serving/" { policy = "write" }
session_prefix "" { policy = "write" }

# This berth's status for berth status, the page and other berths, which also expires with a session; and the status of other
# berths. Everything else works without these two rules.
key_prefix "berth/status/templater/" { policy = "write" }
key_prefix "berth/status/" { policy = "list" }
