# Rights of a berth templater: it reads the catalog and writes nothing.
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
