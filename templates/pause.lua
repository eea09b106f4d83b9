-- Pauses for some milliseconds where HAProxy has no pause: for requests before 3.2, for connections in every version.
-- When the client leaves, HAProxy aborts the action during its pause and continues with the next rule. That rule must not
-- pause: it would fail and be logged. So txn.hold is 0 until the pause is over.
core.register_action("pause", { "http-req", "tcp-req" }, function(txn, milliseconds)
    local hold = txn:get_var("txn.hold")
    txn:set_var("txn.hold", 0)
    core.msleep(tonumber(milliseconds))
    txn:set_var("txn.hold", hold)
end, 1)
