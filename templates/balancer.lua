-- berth's balancer for nginx with lua-nginx-module. The servers of all upstreams are in the dictionary "berth". A control
-- socket replaces them, and every worker reads them there, so changing servers needs no reload. See
-- docs/reference/nginx-lua.md. This code goes into init_by_lua_block, next to `lua_shared_dict berth 16m;`.
--
-- Keys of the dictionary, for an upstream app:
--
--   v:app        number of the current list, as 7; 0: none yet
--   l:7:app      text of that list: "app 10.0.0.1:80 1\napp 10.0.0.2:80 1\n", or "app\n"
--   posted       exists once lists were posted
--   waiting:5    waiting requests, by the span of time in which they began to wait
--   w:app:5      the same for the upstream
--   t:app        requests that ever waited for the upstream
--   m:app        seconds that the longest of them waited
--
-- A number is overwritten in place, which needs no memory and cannot fail. So workers see a new list completely or not at all,
-- and the old list is deleted only afterwards.

local balancer = require "ngx.balancer"
local bit = require "bit"
local ffi = require "ffi"

local concat, sort = table.concat, table.sort
local find, gmatch, match, sub = string.find, string.gmatch, string.match, string.sub
local band, bxor, lshift, rshift, tobit = bit.band, bit.bxor, bit.lshift, bit.rshift, bit.tobit
local floor, log, max, min = math.floor, math.log, math.max, math.min
local crc32, now, sleep = ngx.crc32_long, ngx.now, ngx.sleep
local set_current_peer, set_more_tries = balancer.set_current_peer, balancer.set_more_tries
local get_last_failure = balancer.get_last_failure

-- Seconds for which this worker avoids a server that accepted no connection, unless all have failed.
local AVOID = 2
-- Servers tried for one request.
local TRIES = 32
-- A server may close a keep-alive connection while a request is sent on it. nginx then asks for another server; if none is
-- left, the same one is used again, at most this often.
local REPEATS = 3
local MAX_WEIGHT = 65535
-- Settings that can be posted for an upstream, in addition to its servers.
local SETTINGS = { hold = true, paused = true }
-- Addresses to remember.
local NAMES = 50000
-- nginx's code for "no live upstreams", which Lua does not export.
local BUSY = -3
-- Longest time that a request can wait, in seconds.
local MAX_HOLD = 300
-- A waiting request looks for a server after FIRST_STEP seconds; each further interval is longer by the factor GROWTH. So it
-- waits only slightly longer than necessary.
local FIRST_STEP, GROWTH = 0.02, 1.08
-- Waiting requests are counted by the span of this many seconds in which they began. No request waits that long, so all of them
-- began in the current span or the last one. The counts of a killed worker thus expire after the next span.
local SPAN = MAX_HOLD + 30
-- Times that a request accepted by no server is passed on again.
local ROUNDS = 3
-- Servers that a request is sent to if it may be sent again at all; the same as in nginx.
local MOST_SENT = 3
-- Timeout in milliseconds for probing whether a server accepts connections; the same as proxy_connect_timeout.
local CONNECT_MS = 300
-- Seconds between probes of servers that accepted no connection, while requests wait for them.
local ASK_AGAIN = 0.05
-- A body up to this size is read before a server is chosen; it fits into nginx's buffer (client_body_buffer_size).
local SHORT_BODY = 65536
-- Lifetime of the lock for replacing the lists, in case its worker dies.
local LOCK_SECONDS = 10

local dict = ngx.shared.berth
if not dict then
    error("berth: the dictionary is missing: add `lua_shared_dict berth 16m;` to the http section", 0)
end

local M = {}

-- Addresses are parsed with nginx's own functions, so exactly what nginx accepts as a peer passes.

ffi.cdef [[
    uint32_t ngx_inet_addr(unsigned char *text, size_t len);
    intptr_t ngx_inet6_addr(unsigned char *p, size_t len, unsigned char *addr);
    size_t ngx_inet6_ntop(unsigned char *p, unsigned char *text, size_t len);
]]
local C = ffi.C
local binary = ffi.new("unsigned char[16]")
local text46 = ffi.new("unsigned char[64]")

local function valid_port(port)
    return find(port, "^[1-9]%d?%d?%d?%d?$") and tonumber(port) <= 65535
end

local function parse_address(address)
    local host, port = match(address, "^%[([%x:.]+)%]:(%d+)$")
    if host then
        if #host > 45 or not valid_port(port) then
            return nil
        end
        ffi.copy(text46, host, #host)
        if C.ngx_inet6_addr(text46, #host, binary) ~= 0 then
            return nil
        end
        local len = C.ngx_inet6_ntop(binary, text46, 64)
        return "[" .. ffi.string(text46, len) .. "]:" .. port
    end
    host, port = match(address, "^([%d.]+):(%d+)$")
    if not host or #host > 15 or not valid_port(port) or find("." .. host, "%.0%d") then
        return nil
    end
    ffi.copy(text46, host, #host)
    if C.ngx_inet_addr(text46, #host) == 0xffffffff then
        return nil
    end
    return address
end

-- Cache of parsed addresses: lists are mostly posted again with small changes.
local names, names_known = {}, 0

-- Returns the address as nginx spells it in $upstream_addr, or nil if it is invalid.
local function canonical(address)
    local name = names[address]
    if not name then
        name = parse_address(address)
        if name and names_known >= NAMES then
            names, names_known = {}, 0
        end
        if name then
            names[address] = name
            names_known = names_known + 1
        end
    end
    return name
end

-- Hashes and random numbers.

local function multiply(a, b)
    return tobit(a * band(b, 0xffff) + lshift(tobit(a * rshift(b, 16)), 16))
end

-- Mixes 32 bits like the finalizer of MurmurHash3: each bit of h changes half of the result's bits.
local function mix(h)
    h = multiply(bxor(h, rshift(h, 16)), 0x85ebca6b)
    h = multiply(bxor(h, rshift(h, 13)), 0xc2b2ae35)
    return bxor(h, rshift(h, 16))
end

local random_state

-- Returns a number in (0, 1). Each worker has its own state: that of math.random is copied from the master to all workers, and
-- belongs to the user's code.
local function random()
    if not random_state then
        random_state = mix(tobit(ngx.worker.pid() * 65536 + now() * 1000 % 65536))
    end
    random_state = tobit(random_state + 0x9e3779b9)
    return (band(mix(random_state), 0x7fffffff) + 0.5) / 0x80000000
end

-- Lists: an upstream's text as parsed by this worker. `servers` is also a heap ordered by `due`: the server at 1 is the next
-- in turn. Each list has its own clock, on which a server is due every 1/weight.

local lists = {}

local function sink(heap, i, n)
    local server = heap[i]
    local due = server.due
    while true do
        local child = 2 * i
        if child > n then
            break
        end
        if child < n and heap[child + 1].due < heap[child].due then
            child = child + 1
        end
        if due <= heap[child].due then
            break
        end
        heap[i] = heap[child]
        i = child
    end
    heap[i] = server
end

local function new_server(name, weight)
    return { name = name, weight = weight, seed = mix(crc32(name)), due = 0, retry_at = 0, upto = 0 }
end

-- Fills the list from the text. Servers that stay keep their turn and their failures. New servers start at a random point of
-- the round, so that workers and lists do not all begin with the same server.
local function fill(list, text)
    local clock = list.clock
    local before, by_name, servers, n = list.by_name, {}, {}, 0
    for address, weight in gmatch(text, " (%S+) (%d+)\n") do
        local name = canonical(address)
        local server = name and by_name[name]
        if not name then -- hold or paused
        elseif server then
            server.weight = server.weight + tonumber(weight)
        else
            server = before[name]
            if server then
                server.weight = tonumber(weight)
            else
                server = new_server(name, tonumber(weight))
            end
            by_name[name] = server
            n = n + 1
            servers[n] = server
        end
    end
    local total, equal = 0, true
    for i = 1, n do
        local server = servers[i]
        local period = 1 / server.weight
        if before[server.name] then
            server.due = min(server.due, clock + period)
        else
            server.due = clock + random() * period
        end
        total = total + server.weight
        server.upto = total
        equal = equal and server.weight == servers[1].weight
    end
    local in_order = {}
    for i = 1, n do
        in_order[i] = servers[i]
    end
    for i = floor(n / 2), 1, -1 do
        sink(servers, i, n)
    end
    list.by_name, list.servers, list.in_order = by_name, servers, in_order
    list.n, list.total, list.equal = n, total, equal
    local hold, paused = match(text, " hold (%d+)\n"), match(text, " paused (%d+)\n")
    list.hold, list.paused = hold and hold / 1000, paused ~= "0" and paused and paused / 1000
end

local function new_list(name)
    return {
        name = name, key = "v:" .. name, version = 0,
        by_name = {}, servers = {}, in_order = {}, n = 0, total = 0, equal = true, clock = 0,
        waiting = 0, asks = false,
    }
end

-- Returns the upstream's list, or nil if there is none in the dictionary.
local function current(name)
    local list = lists[name]
    if not list then
        list = new_list(name)
        lists[name] = list
    end
    local version = dict:get(list.key) or 0
    if version == list.version then
        return version ~= 0 and list or nil
    end
    -- The list may be replaced, and the old one deleted, between two reads.
    for _ = 1, 5 do
        if version == 0 then
            fill(list, "")
            list.version = 0
            return nil
        end
        local text = dict:get("l:" .. version .. ":" .. name)
        if text then
            fill(list, text)
            list.version = version
            return list
        end
        version = dict:get(list.key) or 0
    end
    return list.version ~= 0 and list or nil
end

-- The methods return a server of the list that this request has not tried, preferably one that did not fail recently; nil when
-- all were tried.

local function by_turn(list, _, tried)
    local heap, n, time = list.servers, list.n, now()
    local at = 1
    local first = heap[1]
    if first.retry_at > time or tried and tried[first] then
        at = nil
        local fallback
        for i = 1, n do
            local server = heap[i]
            if not (tried and tried[server]) then
                if server.retry_at <= time then
                    if not at or server.due < heap[at].due then
                        at = i
                    end
                elseif not fallback or server.due < heap[fallback].due then
                    fallback = i
                end
            end
        end
        at = at or fallback
        if not at then
            return nil
        end
    end
    local server = heap[at]
    list.clock = max(list.clock, server.due)
    server.due = list.clock + 1 / server.weight
    sink(heap, at, n)
    return server
end

-- Weighted rendezvous hashing: each server draws a number for the key, and the highest wins.
local function by_key(list, key, tried)
    local servers, equal, time = list.in_order, list.equal, now()
    local hash = mix(crc32(key))
    local best, best_score, fallback, fallback_score = nil, 0, nil, 0
    for i = 1, list.n do
        local server = servers[i]
        local score = (band(mix(bxor(hash, server.seed)), 0x7fffffff) + 0.5) / 0x80000000
        if not equal then
            score = -server.weight / log(score)
        end
        if (score > best_score or score > fallback_score) and not (tried and tried[server]) then
            if server.retry_at > time then
                if score > fallback_score then
                    fallback, fallback_score = server, score
                end
            elseif score > best_score then
                best, best_score = server, score
            end
        end
    end
    return best or fallback
end

-- Returns the index of the server whose share of the weights contains a point in [0, total).
local function place(list, point)
    local servers, low, high = list.in_order, 1, list.n
    while low < high do
        local middle = floor((low + high) / 2)
        if servers[middle].upto > point then
            high = middle
        else
            low = middle + 1
        end
    end
    return low
end

local function by_chance(list, _, tried)
    local servers, n, time = list.in_order, list.n, now()
    local start
    for _ = 1, 4 do
        start = place(list, random() * list.total)
        local server = servers[start]
        if server.retry_at <= time and not (tried and tried[server]) then
            return server
        end
    end
    local fallback
    for i = start, start + n - 1 do
        local server = servers[(i - 1) % n + 1]
        if not (tried and tried[server]) then
            if server.retry_at <= time then
                return server
            end
            fallback = fallback or server
        end
    end
    return fallback
end

-- Returns how often this request tried each server, and the last one. $upstream_addr has a comma between servers and a
-- colon where nginx went on, or goes on now, to something else such as an error_page.
local function tried_servers(list)
    local tried, last, ended = {}, nil, false
    for word in gmatch(ngx.var.upstream_addr or "", "[^ ,]+") do
        if word == ":" then
            ended = true
        else
            if ended then
                tried, last, ended = {}, nil, false
            end
            last = list.by_name[word]
            if last then
                tried[last] = (tried[last] or 0) + 1
            end
        end
    end
    return tried, last
end

-- Returns whether the last try had a connection; without one its time is "-".
local function connected()
    return find(ngx.var.upstream_connect_time or "", "%d : $") ~= nil
end

local function again(list, method, key, failure, status)
    local tried, last = tried_servers(list)
    if last and failure == "failed" and not connected() then
        last.retry_at = now() + AVOID
    end
    local server = method(list, key, tried)
    if not server and last and status == 502 and tried[last] <= REPEATS and connected() then
        return last
    end
    return server
end

local function use(list, method, key)
    if list.n == 0 or list.paused then
        return ngx.exit(BUSY)
    end
    local failure, status = get_last_failure()
    local server
    if failure then
        server = again(list, method, key, failure, status)
        if not server then
            return ngx.exit(BUSY)
        end
    else
        server = method(list, key, nil)
        if list.n > 1 then
            set_more_tries(min(list.n, TRIES) - 1)
        end
    end
    local ok, err = set_current_peer(server.name)
    if not ok then
        error("berth: upstream " .. list.name .. ": server " .. server.name .. ": " .. err, 0)
    end
end

-- For balancer_by_lua_block of an upstream: chooses one of its servers by weighted round robin or, with a non-empty key, the
-- same server for the same key. If no list was posted, nginx's own round robin picks a server from the file.
function M.balance(upstream, key)
    local list = current(upstream)
    if list then
        return use(list, key and key ~= "" and by_key or by_turn, key)
    end
end

-- Like balance, but chooses at random, according to the weights.
function M.random(upstream)
    local list = current(upstream)
    if list then
        return use(list, by_chance)
    end
end

-- Returns "1" if the upstream's list was posted and has no servers, otherwise nil. The balancer could only fail then, with
-- status 502; set_by_lua_block and `if` answer 503 first.
function M.empty(upstream)
    local list = current(upstream)
    if list and list.n == 0 then
        return "1"
    end
end

-- Waiting requests. No server has received any part of them, so any request may wait.

-- Returns whether a server accepts a connection now.
local function takes(server)
    local host, port = match(server.name, "^(.*):(%d+)$")
    local socket = ngx.socket.tcp()
    socket:settimeout(CONNECT_MS)
    local ok = socket:connect(host, tonumber(port))
    socket:close()
    server.retry_at = ok and 0 or now() + AVOID
    return ok
end

local function takes_any(list)
    for i = 1, min(list.n, TRIES) do
        if list.in_order[i] and takes(list.in_order[i]) then
            return true
        end
    end
    return false
end

-- Returns whether the list has a server that did not fail recently.
local function has_good(list)
    local servers, time = list.servers, now()
    for i = 1, list.n do
        if servers[i].retry_at <= time then
            return true
        end
    end
    return false
end

-- When all servers have failed, probes them until one accepts a connection, while requests of this worker wait for them.
local function ask(premature, list)
    while not premature and list.waiting > 0 and list.n > 0 and not takes_any(list) do
        sleep(ASK_AGAIN)
    end
    list.asks = false
end

-- Returns whether the upstream has a server that may take requests.
local function usable(list)
    if not list or list.n == 0 or list.paused then
        return false
    elseif has_good(list) then
        return true
    end
    if list.waiting > 0 and not list.asks then
        list.asks = ngx.timer.at(0, ask, list)
    end
    return false
end

-- Increments a counter without evicting anything from the dictionary. If that is full, it counts nothing.
local function count(key, seconds)
    dict:safe_add(key, 0, seconds)
    return dict:incr(key, 1)
end

local function span(time)
    return floor(time / SPAN)
end

-- Returns how many requests wait.
local function waiting(key)
    local at = span(now())
    return (dict:get(key .. ":" .. at) or 0) + (dict:get(key .. ":" .. at - 1) or 0)
end

-- Counts a request that begins to wait. Returns false if too many wait.
local function enter(upstream, most, since)
    local at = ":" .. span(since)
    if not count("waiting" .. at, 2 * SPAN) then
        return false
    elseif waiting("waiting") > most then
        dict:incr("waiting" .. at, -1)
        return false
    end
    count("w:" .. upstream .. at, 2 * SPAN)
    if waiting("w:" .. upstream) == 1 then
        dict:safe_set("m:" .. upstream, 0)
    end
    count("t:" .. upstream)
    lists[upstream].waiting = lists[upstream].waiting + 1
    return true
end

local function leave(upstream, since)
    lists[upstream].waiting = lists[upstream].waiting - 1
    dict:incr("waiting:" .. span(since), -1)
    dict:incr("w:" .. upstream .. ":" .. span(since), -1)
    local waited = now() - since
    if waited > (dict:get("m:" .. upstream) or waited) then
        dict:safe_set("m:" .. upstream, waited)
    end
end

-- Returns the parts of $upstream_addr and similar variables, which may be empty, and for each whether nginx went on to something
-- else after it, such as an error_page. A colon marks that; another marks a balancer without a server.
local function split(s)
    local parts, ends, n = {}, {}, 0
    for part, separator in gmatch(s .. ", ", "([^ ,]*) ?([,:]) ") do
        n = n + 1
        parts[n], ends[n] = part, separator == ":"
    end
    return parts, ends
end

-- Returns how often a server may have received this request, which servers, and how often it was passed to the upstream.
-- Servers that accepted no connection in the last round are avoided from now on.
local function history(list)
    local times = ngx.var.upstream_connect_time
    if not times then
        return 0, {}, 0
    end
    local sent, got, rounds, refused, ended = 0, {}, 0, {}, true
    local addresses = split(ngx.var.upstream_addr or "")
    local parts, ends = split(times)
    for i, time in ipairs(parts) do
        local address = addresses[i] or ""
        if time ~= "" then
            if ended then
                rounds, refused = rounds + 1, {}
            end
            if time ~= "-" then
                sent, got[address] = sent + 1, true
            else
                refused[#refused + 1] = address
            end
            ended = ends[i]
        end
    end
    for _, address in ipairs(refused) do
        local server = list and list.by_name[address]
        if server then
            server.retry_at = now() + AVOID
        end
    end
    return sent, got, rounds
end

local function has_other(list, got)
    for i = 1, list.n do
        if not got[list.in_order[i].name] then
            return true
        end
    end
    return false
end

local idempotent = { GET = true, HEAD = true, OPTIONS = true, PUT = true, DELETE = true }

-- Returns the length of the request's body: 0 = none, nil = unknown.
local function body_length()
    local length = ngx.var.http_content_length
    if length or ngx.var.http_transfer_encoding then
        return tonumber(length)
    end
    local method = ngx.req.get_method()
    if ngx.req.http_version() < 2 or method == "GET" or method == "HEAD" or method == "OPTIONS" then
        return 0
    end
end

-- Returns whether the request's body can still be sent: it was not streamed to a server already.
local function has_body(length)
    if length == 0 then
        return true
    end
    local data = ngx.req.get_body_data()
    return data ~= nil and #data == length
end

-- Returns how many seconds requests for the upstream may wait; 0 = not at all. Right after nginx starts, nothing is posted yet.
-- An upstream that is never posted gets its servers through reloads, and requests do not wait for these.
local function hold_of(list, milliseconds)
    if not list then
        return dict:get("posted") and 0 or milliseconds / 1000
    end
    return list.paused or list.hold or milliseconds / 1000
end

-- Returns "1" if a failed request should be passed on once more when the upstream has a server: no server received it, or it
-- may be sent again. For set_by_lua_block in the target of error_page. Such a request goes on where `wait` is called with `again`.
function M.again(upstream, milliseconds)
    local list = current(upstream)
    local sent, _, rounds = history(list)
    local till = tonumber(ngx.var.berth_wait_until)
    if rounds == 0 or rounds > ROUNDS or hold_of(list, milliseconds) == 0 or till and till <= now() then
        return
    end
    local length = body_length()
    if has_body(length) and (sent == 0 or length == 0 and sent < MOST_SENT and idempotent[ngx.req.get_method()]) then
        return "1"
    end
end

-- Returns 503 if the request found no server in time, or too many requests wait.
local function await(upstream, hold, most)
    local start = now()
    local till = tonumber(ngx.var.berth_wait_until) or start + hold
    ngx.var.berth_wait_until = till
    if till <= start or not enter(upstream, most, start) then
        return 503
    end
    ngx.ctx.berth_waits = { upstream, start }
    local step, found = FIRST_STEP, false
    repeat
        sleep(max(min(step, till - now()), 0.001))
        step = step * GROWTH
        found = usable(current(upstream))
    until found or now() >= till
    ngx.ctx.berth_waits = nil
    leave(upstream, start)
    return not found and 503 or nil
end

-- Returns the status with which to end the request, or nil to go on.
local function admit(upstream, milliseconds, most, again)
    local list = current(upstream)
    local hold = hold_of(list, milliseconds)
    if hold == 0 then
        return
    end
    local sent, got, rounds = history(list)
    if again and sent > 0 and list and not list.paused and not has_other(list, got) and takes_any(list) then
        ngx.var.berth_wait_until = 0 -- the servers are up: do not resend to one that already received it
        return 502
    end
    if rounds == 0 and not list then
        return
    end
    local length = 0
    if rounds == 0 then
        length = body_length()
    end
    local short = length and length <= SHORT_BODY
    if not (usable(list) and (short or takes_any(list))) then
        local status = await(upstream, hold, most)
        if status then
            return status
        end
    end
    if short and length > 0 then
        ngx.req.read_body()
    end
end

-- Makes a request wait until the upstream has a server, at most the given milliseconds or what was posted for the upstream, and
-- then ends it with status 503. If more than `most` requests would wait, it ends at once. For access_by_lua_block.
--
-- nginx streams a body and has nothing left for another server if the first one accepts no connection. So a short body is
-- read beforehand. For a long one a server is probed first.
function M.wait(upstream, milliseconds, most, again)
    local status = admit(upstream, milliseconds, most, again)
    if status then
        return ngx.exit(status)
    end
end

-- For log_by_lua_block where requests wait: uncounts requests that ended while waiting.
function M.waited()
    local waits = ngx.ctx.berth_waits
    if waits then
        leave(waits[1], waits[2])
    end
end

local checks = {}

-- For the balancer of an upstream that only proves that this code runs. It takes the usual path, to the given server or to the
-- file's.
function M.check(address)
    if not address then
        return M.balance("berth.check")
    end
    local list = checks[address]
    if not list then
        local server = new_server(address, 1)
        list = new_list("berth.check")
        list.servers[1], list.in_order[1], list.by_name[address], list.n, list.total = server, server, server, 1, 1
        checks[address] = list
    end
    return use(list, by_turn)
end

-- The control socket.

-- Reads the line at a position of the body. Returns the position of the next line, the upstream's name (nil for a blank line)
-- and the address or setting, if any; or nil and an error.
local function parse_line(body, at)
    local _, stop, name, address, weight = find(body, "^([^%s%c]+) (%l+) (%d+)\n", at)
    if address and SETTINGS[address] then
        if #name > 255 then
            return nil, "the upstream's name has more than 255 characters"
        elseif #weight > 6 or tonumber(weight) > MAX_HOLD * 1000 then
            return nil, address .. " is not 0 to " .. MAX_HOLD * 1000 .. " milliseconds"
        end
        return stop + 1, name, address
    end
    _, stop, name, address, weight = find(body, "^([^%s%c]+) (%S+) ([1-9]%d?%d?%d?%d?)\n", at)
    if not stop then
        _, stop, name = find(body, "^([^%s%c]*)\n", at)
    end
    if not stop then
        return nil, "not of the form: upstream address:port weight"
    elseif #name > 255 then
        return nil, "the upstream's name has more than 255 characters"
    elseif address and not canonical(address) then
        return nil, "not an IP address and port: " .. sub(address, 1, 100)
    elseif weight and tonumber(weight) > MAX_WEIGHT then
        return nil, "the weight is not 1 to " .. MAX_WEIGHT
    end
    return stop + 1, name ~= "" and name or nil, address
end

-- Returns the body as a table of the upstreams' texts, or nil and an error with the line number. Consecutive lines of one
-- upstream, the usual case, are taken as one piece.
local function parse(body)
    if sub(body, -1) ~= "\n" then
        body = body .. "\n"
    end
    local pieces, number, at, from, piece = {}, 0, 1, 1, nil
    local function finish()
        if piece then
            pieces[piece] = (pieces[piece] or "") .. sub(body, from, at - 1)
        end
    end
    while at <= #body do
        number = number + 1
        local after, name, address = parse_line(body, at)
        if not after then
            return nil, "line " .. number .. ": " .. name
        end
        if not address or name ~= piece then
            finish()
            from, piece = at, address and name or nil
            if name and not address then
                pieces[name] = pieces[name] or ""
            end
        end
        at = after
    end
    finish()
    for name, piece in pairs(pieces) do
        if piece == "" then
            pieces[name] = name .. "\n"
        end
    end
    return pieces
end

-- Returns the versions and the texts of all upstreams in the dictionary, by name.
local function stored()
    local versions, texts = {}, {}
    for _, key in ipairs(dict:get_keys(0)) do
        local name = match(key, "^v:(.+)$")
        local version = name and dict:get(key)
        if version and version ~= 0 then
            versions[name] = version
            texts[name] = dict:get("l:" .. version .. ":" .. name)
        end
    end
    return versions, texts
end

-- Returns the dictionary's lists in the format of a POST.
local function listing()
    local order, lines = {}, {}
    local _, texts = stored()
    for name in pairs(texts) do
        order[#order + 1] = name
    end
    sort(order)
    for i, name in ipairs(order) do
        lines[i] = texts[name]
    end
    return concat(lines)
end

-- Deletes the texts and numbers of other versions: replaced or removed ones, and remains of a failed replacement.
local function sweep(versions)
    for _, key in ipairs(dict:get_keys(0)) do
        local kind, rest = match(key, "^([vltm]):(.+)$")
        if kind and kind ~= "l" and not versions[rest] then
            dict:delete(key)
        elseif kind == "l" then
            local version, name = match(rest, "^(%d+):(.+)$")
            if tonumber(version) ~= versions[name] then
                dict:delete(key)
            end
        end
    end
end

-- Stores a new text next to the current one, and a number if there was none. Returns its version, or nil and an error.
local function prepare(name, text)
    local version, err = dict:incr("versions", 1, 0)
    if not version then
        return nil, err
    end
    local ok
    ok, err = dict:safe_set("l:" .. version .. ":" .. name, text)
    if not ok then
        return nil, err
    end
    ok, err = dict:safe_add("v:" .. name, 0)
    if not ok and err ~= "exists" then
        return nil, err
    end
    return version
end

-- Replaces all texts of the dictionary. Returns the new listing; or nil and an error if it has no room, and then changes nothing.
local function replace(texts)
    local versions, had = stored()
    local now_versions, changed = {}, {}
    for name, text in pairs(texts) do
        now_versions[name] = versions[name]
        if text ~= had[name] then
            local version, err = prepare(name, text)
            if not version then
                sweep(versions)
                return nil, err
            end
            changed[name] = version
            now_versions[name] = version
        end
    end
    for name, version in pairs(changed) do
        dict:set("v:" .. name, version)
    end
    dict:safe_set("posted", true)
    sweep(now_versions)
    return listing()
end

-- Calls f while no other worker reads or replaces all lists, and returns its results; or nil and an error without the lock.
local function alone(f, argument)
    for _ = 1, LOCK_SECONDS * 200 do
        local ok, err = dict:safe_add("lock", ngx.worker.pid(), LOCK_SECONDS)
        if ok then
            local ran, result, why = pcall(f, argument)
            dict:delete("lock")
            if not ran then
                return nil, result
            end
            return result, why
        end
        if err ~= "exists" then
            return nil, err
        end
        ngx.sleep(0.005)
    end
    return nil, "another request has been replacing the lists for " .. LOCK_SECONDS .. " seconds"
end

-- Returns the body of the request, from its file if it is too large for nginx's buffer.
local function body()
    ngx.req.read_body()
    local data = ngx.req.get_body_data()
    if data then
        return data
    end
    local path = ngx.req.get_body_file()
    if not path then
        return ""
    end
    local file, err = io.open(path, "rb")
    if not file then
        return nil, err
    end
    data, err = file:read("*a")
    file:close()
    return data, err
end

local function answer(status, text)
    ngx.status = status
    ngx.header.content_type = "text/plain"
    ngx.header.content_length = #text
    ngx.print(text)
    return ngx.exit(ngx.OK)
end

-- The content of /servers: GET lists the servers of the upstreams, POST replaces them all.
function M.servers()
    local method = ngx.req.get_method()
    local text, err
    if method == "GET" or method == "HEAD" then
        text, err = alone(listing)
    elseif method == "POST" then
        local posted, texts
        posted, err = body()
        if not posted then
            return answer(500, "the body cannot be read: " .. err .. "\n")
        end
        texts, err = parse(posted)
        if not texts then
            return answer(400, err .. "\n")
        end
        text, err = alone(replace, texts)
    else
        ngx.header.allow = "GET, HEAD, POST"
        return answer(405, "GET or POST\n")
    end
    if text then
        return answer(200, text)
    elseif err == "no memory" then
        return answer(507, "the dictionary is too small: give `lua_shared_dict berth` more than the "
            .. dict:capacity() / 1048576 .. "m that it has\n")
    end
    return answer(500, err .. "\n")
end

-- The content of /waiting: a line for each upstream for which requests have waited. It has the number that wait, the number that
-- ever waited, the longest wait in milliseconds since none waited, and "paused" if the upstream is.
function M.waiting()
    local lines = {}
    for _, key in ipairs(dict:get_keys(0)) do
        local name = match(key, "^t:(.+)$")
        if name then
            local list = current(name)
            lines[#lines + 1] = concat({ name, waiting("w:" .. name), dict:get(key) or 0,
                floor((dict:get("m:" .. name) or 0) * 1000), list and list.paused and "paused" or nil }, " ") .. "\n"
        end
    end
    sort(lines)
    return answer(200, concat(lines))
end

package.loaded["berth"] = M
