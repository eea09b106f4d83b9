# Rights of a berth templater: it reads the catalog and writes nothing.
#
#   consul acl policy create -name berth-templater -rules @templater.hcl
#
# A template of yours that reads keys needs a rule for each: key "berth/config/shop" { policy = "read" }

# Which services there are, their instances and checks. An instance that the token may not read gets no requests.
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
