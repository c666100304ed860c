-- The shared state of a mesh: who is there, who is ejected, what retries cost. One call is one heartbeat of
-- one sidecar: it says what it knows, and is told what all know. Nothing here happens without a call.
--
-- KEYS, all in one hash slot; each ends 10 minutes after the last call. Words are parted by one space:
--   1 members   hash  pod -> "heard state capacity demand\n" and a payload, opaque
--   2 seen      zset  pod by the time when it was last heard
--   3 votes     hash  target -> "until observer until observer ...", the 8 latest
--   4 suspects  zset  target by the time when its last vote ends
--   5 ejected   zset  pod by the time when its ticket ends
--   6 tickets   hash  pod -> "reason voter voter ..."
--   7 pardons   zset  pod whose ticket was ended on purpose, by the time when that would have ended
--   8 probes    hash  pod -> "until holder"
--   9 retries   hash  slot -> "second origins retries"; ten slots
--  10 meta      hash  secret, began, percent (the last max_percent)
-- ARGV: now (ms; empty: the server's clock, the only one that counts), a payload, an ask, a channel. The ask
-- is a MessagePack map, `_Ask` in blackboard.py.
-- Result: {a MessagePack map, `_Head` in blackboard.py; then as they are members, ejected with its times,
-- tickets, probes}.
-- Notices on the channel: the length of a MessagePack map in 4 bytes, the map, and what `members` holds of a
-- pod (nothing: it has left). The map has at_ms, and pod, or ejected, tickets and probes as in the result.
--
-- Rules
-- 1. A member that was silent for 5 s is gone. At most `max_replicas` are members; who comes when it is full
--    is told so and changes nothing. A change of state, a newcomer, a leave and `urgent` are published.
-- 2. N counts the members whose state is not `down`, and only these count as ejected or as suspects.
--    |ejected| <= cap = max(1 if N >= 3 else 0, floor(max_percent/100 N)) after each call: if it were more
--    because somebody went or changed, or `max_percent` did, the tickets that end first are released.
-- 3. A vote lasts 10 s; it is written anew when 5 are over. A ticket is granted when the votes are enough
--    (one that stands alone, else those of min(3, ceil(observers/3)) members), |ejected| + 1 <= cap,
--    |suspects or ejected| < N/2 (else it is systemic: it is not these pods that are ill), and those who stay
--    can bear it: 0.85 sum(capacity) >= sum(demand). Neither `down` nor `draining` ones stay.
-- 4. A ticket ends by itself, with its pod, or when it is told to (`uneject`). A pod's own vote makes the one
--    it has longer, if it asks for that: who failed again on its return keeps its place. What a sidecar `held`
--    when keys or members were lost is granted again by rule 3 without votes, but not what was ended on purpose.
-- 5. One member at a time may probe an ejected pod: it asks again before its lease ends.
-- 6. While nobody called for 2 s, and 2 s after it, the view is not settled: who is missing may be there.
-- What an ordinary heartbeat costs must not grow with the mesh, but for reading `members`: what looks at each
-- of them is done only for votes, and when somebody came, went or changed.

local MEMBERS, SEEN, VOTES, SUSPECTS, EJECTED, TICKETS, PARDONS, PROBES, RETRIES, META = unpack(KEYS)
local ALIVE_MS, VOTE_MS, LEFT_BEHIND_MS, SETTLED_MS = 5000, 10000, 600000, 2000
local PAYLOAD_BYTES, VOTES_KEPT, RING_S, LOAD = 4096, 8, 10, 0.85

local payload, ask, channel = ARGV[2], cmsgpack.unpack(ARGV[3]), ARGV[4]
if #payload > PAYLOAD_BYTES then
  return redis.error_reply('the payload has more than 4096 bytes')
end

local call = redis.call
local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = math.floor(time[1] * 1000 + time[2] / 1000)
end
local me = ask.pod
local members_changed, tickets_changed = false, false

local function publish(notice, record)
  notice.at_ms = now
  local head = cmsgpack.pack(notice)
  call('PUBLISH', channel, struct.pack('>I4', #head) .. head .. record)
end

-- The names in a sorted set whose time has come. A clock that jumped back may have left times that are too
-- far in the future: they come down to `latest`. Keys can be lost one by one: hashes go with their set.
local function due(key, until_ms, latest, ...)
  if call('EXISTS', key) == 0 then
    for _, hash in ipairs({ ... }) do
      call('DEL', hash)
    end
    return {}
  end
  for _, pod in ipairs(call('ZRANGEBYSCORE', key, '(' .. latest, '+inf')) do
    call('ZADD', key, latest, pod)
  end
  return call('ZRANGEBYSCORE', key, '-inf', until_ms)
end

-- Coming and going.

local function acquit(pod)
  call('HDEL', VOTES, pod)
  call('ZREM', SUSPECTS, pod)
end

local function end_ticket(pod, is_pardon)
  local ends = call('ZSCORE', EJECTED, pod)
  if not ends then
    return
  end
  call('ZREM', EJECTED, pod)
  call('HDEL', TICKETS, pod)
  call('HDEL', PROBES, pod)
  if is_pardon then
    call('ZADD', PARDONS, ends, pod)
  end
  tickets_changed = true
end

local function forget(pod, is_pardon)
  call('ZREM', SEEN, pod)
  call('HDEL', MEMBERS, pod)
  acquit(pod)
  end_ticket(pod, is_pardon)
  members_changed = true
end

-- Whether the view is settled.
local function settle()
  local last = call('ZRANGE', SEEN, -1, -1, 'WITHSCORES')[2]
  local meta = call('HMGET', META, 'began', 'percent')
  local began = tonumber(meta[1] or '')
  if not began or began > now or not last or now - last > SETTLED_MS then
    began = now
    call('HSET', META, 'began', now)
  end
  if tonumber(meta[2] or '') ~= ask.max_percent then
    call('HSET', META, 'percent', ask.max_percent)
    members_changed = true
  end
  return now - began >= SETTLED_MS
end

local function leave()
  if call('ZSCORE', SEEN, me) then
    forget(me, true)
    publish({ pod = me }, '')
  end
end

-- Whether we are a member.
local function heartbeat()
  local before = call('ZSCORE', SEEN, me) and call('HGET', MEMBERS, me)
  if not before and call('ZCARD', SEEN) >= ask.max_replicas then
    return false
  end
  local line = string.format('%.0f %s %.17g %.17g\n', now, ask.state, ask.capacity, ask.demand)
  call('ZADD', SEEN, now, me)
  call('HSET', MEMBERS, me, line .. payload)
  local is_news = not before or string.match(before, '^%S+ (%S+)') ~= ask.state
  members_changed = members_changed or is_news
  if is_news or ask.urgent then
    publish({ pod = me }, line .. payload)
  end
  return true
end

-- The hash of members, without those whom only one of the two keys knows.
local function read_members()
  local found = call('HGETALL', MEMBERS)
  if #found == 2 * call('ZCARD', SEEN) then
    return found
  end
  for i = 1, #found, 2 do
    if not call('ZSCORE', SEEN, found[i]) then
      forget(found[i])
    end
  end
  for _, pod in ipairs(call('ZRANGE', SEEN, 0, -1)) do
    if call('HEXISTS', MEMBERS, pod) == 0 then
      forget(pod)
    end
  end
  return call('HGETALL', MEMBERS)
end

-- Tickets.

local ejected = {} -- pod -> true
local state, capacity = {}, {}
local pods, cap, counted, suspects = 0, 0, 0, 0
local borne, asked = 0, 0 -- what those who stay can bear, what all ask for

local function is_up(pod)
  return state[pod] ~= nil and state[pod] ~= 'down'
end

local function borne_by(pod)
  return is_up(pod) and state[pod] ~= 'draining' and capacity[pod] or 0
end

local function release_expired()
  for _, pod in ipairs(due(EJECTED, now, now + ask.longest_ms, TICKETS, PROBES)) do
    call('ZREM', EJECTED, pod)
    call('HDEL', TICKETS, pod)
    call('HDEL', PROBES, pod)
  end
  for _, pod in ipairs(due(SUSPECTS, now, now + VOTE_MS, VOTES)) do
    acquit(pod)
  end
  for _, pod in ipairs(due(PARDONS, now, now + ask.longest_ms)) do
    call('ZREM', PARDONS, pod)
  end
end

-- Numbers stay text where arithmetic makes them numbers anyway: this loop is most of what a vote costs.
local function look_at(members)
  local match = string.match
  for i = 1, #members, 2 do
    local pod = members[i]
    local word, bears, asks = match(members[i + 1], ' (%S+) (%S+) (%S+)')
    state[pod], capacity[pod] = word, bears
    asked = asked + asks
    if word ~= 'down' then
      pods = pods + 1
      borne = borne + (word == 'draining' and 0 or bears)
    end
  end
  cap = math.max(pods >= 3 and 1 or 0, math.floor(ask.max_percent * pods / 100))
end

local function count_tickets()
  for _, pod in ipairs(call('ZRANGE', EJECTED, 0, -1)) do
    if not state[pod] then
      end_ticket(pod)
    else
      ejected[pod] = true
      counted = counted + (is_up(pod) and 1 or 0)
      borne = borne - borne_by(pod)
    end
  end
end

local function release_those_above_the_cap()
  local excess = counted - cap
  for _, pod in ipairs(excess > 0 and call('ZRANGE', EJECTED, 0, -1) or {}) do
    if excess > 0 and is_up(pod) then
      end_ticket(pod)
      ejected[pod] = nil
      counted, excess = counted - 1, excess - 1
      borne = borne + borne_by(pod)
    end
  end
end

-- The members who hold that this pod is ill, ourselves included. Our own vote is written anew when half of
-- its time is over: in a large incident this is what most calls do.
local function record(target)
  local voters, kept = {}, {}
  local is_fresh = false
  for ends, observer in string.gmatch(call('HGET', VOTES, target) or '', '(%S+) (%S+)') do
    local left = ends - now
    if state[observer] and left > 0 and left <= VOTE_MS and (observer ~= me or left > VOTE_MS / 2) then
      is_fresh = is_fresh or observer == me
      voters[#voters + 1] = observer
      kept[#kept + 1] = ends .. ' ' .. observer
    end
  end
  if is_fresh then
    return voters
  end
  if #kept == VOTES_KEPT then
    table.remove(voters, 1)
    table.remove(kept, 1)
  end
  voters[#voters + 1] = me
  kept[#kept + 1] = string.format('%.0f %s', now + VOTE_MS, me)
  call('HSET', VOTES, target, table.concat(kept, ' '))
  call('ZADD', SUSPECTS, now + VOTE_MS, target)
  return voters
end

local function count_suspects()
  for _, pod in ipairs(call('ZRANGE', SUSPECTS, 0, -1)) do
    if is_up(pod) and not ejected[pod] then
      suspects = suspects + 1
    end
  end
end

-- Why this pod cannot be ejected, whoever asks for it; nil when it can. `others` are suspects besides it.
local function obstacle(target, others)
  local ill = math.max(others + 1 + counted, ask.suspects)
  if ill >= pods / 2 then
    return ill >= 2 and 'systemic' or 'cap'
  elseif counted + 1 > cap then
    return 'cap'
  elseif (borne - borne_by(target)) * LOAD < asked then
    return 'capacity'
  end
end

local function grant(target, reason, ms, voters)
  call('ZADD', EJECTED, now + math.max(1, math.min(ms, ask.longest_ms)), target)
  call('HSET', TICKETS, target, reason .. ' ' .. table.concat(voters, ' '))
  call('ZREM', PARDONS, target)
  acquit(target)
  ejected[target] = true
  counted = counted + 1
  borne = borne - borne_by(target)
  tickets_changed = true
  return 'granted'
end

local function prolong(target, ms)
  local ends = now + math.min(ms, ask.longest_ms)
  if ends > tonumber(call('ZSCORE', EJECTED, target)) then
    call('ZADD', EJECTED, ends, target)
    tickets_changed = true
  end
end

local function decide(vote, voters)
  local target, reason, alone, observers, ms = unpack(vote)
  if ejected[target] then
    if target == me then
      prolong(target, ms)
    end
    return 'exists'
  elseif not voters then
    return 'absent'
  elseif #voters < (alone and 1 or math.min(3, math.ceil(observers / 3))) then
    return 'votes'
  end
  local why = obstacle(target, suspects - 1)
  if why then
    return why
  end
  suspects = suspects - 1
  return grant(target, reason, ms, voters)
end

-- Every vote counts before the first is decided on: what is systemic may come in one call.
local function decide_votes()
  local voters, words = {}, {}
  for i, vote in ipairs(ask.votes) do
    if is_up(vote[1]) and not ejected[vote[1]] then
      voters[i] = record(vote[1])
    end
  end
  count_suspects()
  for i, vote in ipairs(ask.votes) do
    words[i] = { vote[1], decide(vote, voters[i]) }
  end
  return words
end

local function decide_held(target, reason, ms)
  if call('ZSCORE', PARDONS, target) then
    return 'pardoned'
  elseif ejected[target] then
    return 'exists'
  elseif not is_up(target) then
    return 'absent'
  end
  local others = suspects - (call('ZSCORE', SUSPECTS, target) and 1 or 0)
  local why = obstacle(target, others)
  if why then
    return why
  end
  suspects = others
  return grant(target, reason, ms, { me })
end

local function decide_all_held()
  local words = {}
  for i, each in ipairs(ask.held) do
    words[i] = { each[1], decide_held(unpack(each)) }
  end
  return words
end

local function lease_probes()
  for _, pod in ipairs(ask.probes) do
    local ends, holder = string.match(call('HGET', PROBES, pod) or '', '^(%S+) (%S+)$')
    local left = tonumber(ends or 0) - now
    local is_taken = left > 0 and left <= ask.lease_ms and holder ~= me and call('ZSCORE', SEEN, holder)
    if not is_taken and call('ZSCORE', EJECTED, pod) then
      call('HSET', PROBES, pod, string.format('%.0f %s', now + ask.lease_ms, me))
    end
  end
end

-- The rest.

local function sum_retries(is_member)
  local second, origins, retries = math.floor(now / 1000), 0, 0
  local first, again = ask.origins, ask.retries
  local lines = call('HGETALL', RETRIES)
  for i = 2, #lines, 2 do
    local at, its_first, its_again = string.match(lines[i], '^(%S+) (%S+) (%S+)$')
    local age = second - at
    if age == 0 then
      first, again = first + its_first, again + its_again
    end
    if age >= 0 and age < RING_S then
      origins, retries = origins + its_first, retries + its_again
    end
  end
  if is_member and ask.origins + ask.retries > 0 then
    call('HSET', RETRIES, second % RING_S, string.format('%.0f %.17g %.17g', second, first, again))
    return origins + ask.origins, retries + ask.retries
  end
  return origins, retries
end

local function share_secret()
  if ask.secret ~= '' then
    call('HSETNX', META, 'secret', ask.secret)
  end
  return call('HGET', META, 'secret') or ''
end

local head = { at_ms = now, settled = settle(), full = false, votes = {}, held = {} }
for _, pod in ipairs(due(SEEN, '(' .. now - ALIVE_MS, now)) do
  forget(pod, head.settled) -- one that comes back after a while has begun anew
end
local is_member = false
if ask.leave then
  leave()
else
  is_member = heartbeat()
  head.full = not is_member
end
release_expired()
for _, pod in ipairs(is_member and ask.uneject or {}) do
  end_ticket(pod, true)
  acquit(pod)
end
local members = read_members()
local has_wishes = is_member and #ask.votes + #ask.held > 0
if has_wishes or members_changed then
  look_at(members)
  count_tickets()
  release_those_above_the_cap()
end
if has_wishes then
  head.votes = decide_votes()
  head.held = decide_all_held()
end
if is_member then
  lease_probes()
end
head.origins, head.retries = sum_retries(is_member)
head.secret = share_secret()
head.suspects = call('ZRANGE', SUSPECTS, 0, -1)
local times = call('ZRANGE', EJECTED, 0, -1, 'WITHSCORES')
local tickets, probes = call('HGETALL', TICKETS), call('HGETALL', PROBES)
if tickets_changed then
  publish({ ejected = times, tickets = tickets, probes = probes }, '')
end
for _, key in ipairs(KEYS) do
  call('PEXPIRE', key, LEFT_BEHIND_MS)
end
return { cmsgpack.pack(head), members, times, tickets, probes }
