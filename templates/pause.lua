-- A pause of so many milliseconds, for the HAProxy that has none of its own: of requests before 3.2, of connections ever.
-- When the client goes away, HAProxy ends the action amid its pause, and goes on to the next rule: that is not to pause, as
-- it would fail and be logged. So nothing is held any more until the pause is over.
core.register_action("pause", { "http-req", "tcp-req" }, function(txn, milliseconds)
    local hold = txn:get_var("txn.hold")
    txn:set_var("txn.hold", 0)
    core.msleep(tonumber(milliseconds))
    txn:set_var("txn.hold", hold)
end, 1)
