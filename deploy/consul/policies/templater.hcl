# Rights of a berth templater: it reads the catalog, and tells rollouts what its proxy serves.
#
#   consul acl policy create -name berth-templater -rules @templater.hcl
#
# A template of yours that reads keys needs a rule for each: key "berth/config/shop" { policy = "read" }

# Which services there are, their instances and checks. An instance that the token may not read gets no requests.
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }

# Which services are paused by hand. Without this right it is as if none was. The policy list is for a Consul with
# enable_key_list_policy, and includes the right to read.
key_prefix "berth/paused/" { policy = "list" }

# While berth rollout runs: what it asks for, and what the proxy serves, which vanishes with a session. Without these three rules
# everything else works as well, and a rollout goes by Consul's checks and by time. Sessions belong to the agent's node: with a
# token for each node, session "node-1" { policy = "write" } is enough.
key_prefix "berth/rollout/" { policy = "list" }
key_prefix "berth/serving/" { policy = "write" }
session_prefix "" { policy = "write" }

# What this berth knows and why, for berth status, the page and other berths, which vanishes with a session too; and what the others
# say. Without these two rules everything else works as well.
key_prefix "berth/status/templater/" { policy = "write" }
key_prefix "berth/status/" { policy = "list" }
