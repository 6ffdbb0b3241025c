// The Lua that runs inside Redis: all rules of the key store that must hold between gateways are decided here, atomically.
//
// Keys, all in one slot by their hash tag:
//   gw:{service}:sentinel          hash  run (run id of the server), id (random), floor (absent while one gateway looks up the tail)
//   gw:{service}:h:<id>            string  fingerprint:nonce:holder, TTL lease: a running hint
//   gw:{service}:k:<id>            string  fingerprint:position, TTL retention: where the key's newest decision is
//   gw:{service}:e:<id>:<position> hash  w (digest of the winner), r:<replica> (digest), b:<digest> (bytes once), TTL retention
// Positions stay strings wherever they are stored or sent back: Lua prints large numbers with 14 digits.
// What is found with a wrong type or an impossible value is deleted and counts as never written.

import { redisScript } from "../drivers/redis.ts";

/**
 * KEYS: sentinel. ARGV: run id, then operations, each its name and its arguments.
 * Answers "stale" (nothing was done) or one array an operation; an operation that failed answers {"failed", why}.
 */
export const operationsScript = redisScript(`
local prefix = string.sub(KEYS[1], 1, -9)
local sentinel = redis.pcall('HMGET', KEYS[1], 'run', 'floor')
if sentinel.err or sentinel[1] ~= ARGV[1] then return 'stale' end
local floor = tonumber(sentinel[2] or '')
if not floor then return 'stale' end

-- Redis refuses for want of memory only the first write of a script, and a DEL goes first too easily: so it is asked here, once.
local asked = redis.pcall('SETNX', KEYS[1], '')
local full = type(asked) == 'table' and asked.err
local function room()
  if full then error({ err = full }) end
end

local function get(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then redis.call('DEL', key) return nil end
  return value
end
local function hget(key, field)
  local value = redis.pcall('HGET', key, field)
  if type(value) == 'table' then redis.call('DEL', key) return nil end
  return value
end
local function entryKey(id, position) return prefix .. 'e:' .. id .. ':' .. position end
local function winner(entry)
  local digest = hget(entry, 'w')
  if not digest then return nil end
  if #digest == 32 and not string.find(digest, '[^0-9a-f]') then return digest end
  redis.call('HDEL', entry, 'w')
  return nil
end
local function pointer(id)
  local value = get(prefix .. 'k:' .. id)
  if not value then return nil end
  local fingerprint, position = string.match(value, '^(%x+):(%d+)$')
  if not fingerprint then redis.call('DEL', prefix .. 'k:' .. id) end
  return fingerprint, position
end
local function decided(id)
  local fingerprint, position = pointer(id)
  if not fingerprint then return nil end
  local entry = entryKey(id, position)
  local digest = winner(entry)
  if not digest then return nil end
  return fingerprint, position, digest, entry
end
local function hint(id)
  local value = get(prefix .. 'h:' .. id)
  if not value then return nil end
  local fingerprint, nonce, holder = string.match(value, '^(%x+):([^:]+):(.*)$')
  if not fingerprint then redis.call('DEL', prefix .. 'h:' .. id) end
  return fingerprint, nonce, holder
end

local operations = {}
-- id, fingerprint, nonce, holder, lease
operations.claim = { 5, function(id, fingerprint, nonce, holder, lease)
  local known, position, digest, entry = decided(id)
  if known then
    if known ~= fingerprint then return { 'other' } end
    return { 'done', position, digest, hget(entry, 'b:' .. digest) or '' }
  end
  local running, owner = hint(id)
  if running then
    if running ~= fingerprint then return { 'other' } end
    if owner ~= nonce then return { 'running' } end
  end
  room()
  redis.call('SET', prefix .. 'h:' .. id, fingerprint .. ':' .. nonce .. ':' .. holder, 'PX', lease)
  return { 'fresh' }
end }
-- id, nonce (empty: by holder), holder
operations.release = { 3, function(id, nonce, holder)
  local running, owner, name = hint(id)
  if running and ((nonce ~= '' and owner == nonce) or (nonce == '' and name == holder)) then
    redis.call('DEL', prefix .. 'h:' .. id)
  end
  return { 'ok' }
end }
-- id, fingerprint, nonce, holder, lease. A hint that is gone (a flush) is put back; one that is over or another's is given up.
operations.renew = { 5, function(id, fingerprint, nonce, holder, lease)
  if decided(id) then return { 'over' } end
  local running, owner = hint(id)
  if running and owner ~= nonce then return { 'over' } end
  if not running then room() end
  redis.call('SET', prefix .. 'h:' .. id, fingerprint .. ':' .. nonce .. ':' .. holder, 'PX', lease)
  return { 'held' }
end }
-- id, position, replica, digest, bytes (empty: none), retention. The first answer of a replica stays.
operations.offer = { 6, function(id, position, replica, digest, bytes, retention)
  if tonumber(position) <= floor then return { 'lost' } end
  room()
  local entry = entryKey(id, position)
  local won = winner(entry)
  local isFirst = redis.call('HSETNX', entry, 'r:' .. replica, digest) == 1
  if not isFirst and hget(entry, 'r:' .. replica) ~= digest then return { 'ok' } end
  if bytes ~= '' and (not won or won == digest) then redis.call('HSETNX', entry, 'b:' .. digest, bytes) end
  redis.call('PEXPIRE', entry, retention)
  return { 'ok' }
end }
-- id, position
operations.candidates = { 2, function(id, position)
  local all = redis.pcall('HGETALL', entryKey(id, position))
  if all.err then redis.call('DEL', entryKey(id, position)) return {} end
  return all
end }
-- id, fingerprint, position, digest, bytes (empty: none), retention
operations.decide = { 6, function(id, fingerprint, position, digest, bytes, retention)
  local entry = entryKey(id, position)
  local won = winner(entry)
  local isLost = not won and tonumber(position) <= floor
  if not won and not isLost then room() end
  redis.call('DEL', prefix .. 'h:' .. id)
  if isLost then return { 'lost' } end
  if not won then
    redis.call('HSET', entry, 'w', digest)
    won = digest
    redis.call('PEXPIRE', entry, retention)
  end
  if won == digest and bytes ~= '' and tonumber(position) > floor and not full then
    redis.call('HSETNX', entry, 'b:' .. digest, bytes)
  end
  local _, newest = pointer(id)
  if not full and (not newest or tonumber(newest) < tonumber(position)) then
    redis.call('SET', prefix .. 'k:' .. id, fingerprint .. ':' .. position, 'PX', retention)
  end
  local kept = hget(entry, 'b:' .. won) or ''
  if won == digest and kept == bytes then return { 'yours' } end
  return { 'winner', won, kept }
end }
-- id
operations.decided = { 1, function(id)
  local known, position, digest, entry = decided(id)
  if not known then return { 'none' } end
  return { 'done', position, digest, hget(entry, 'b:' .. digest) or '' }
end }

local replies = {}
local at = 2
while at <= #ARGV do
  local operation = operations[ARGV[at]]
  local ok, reply = pcall(operation[2], unpack(ARGV, at + 1, at + operation[1]))
  if not ok then
    if type(reply) == 'table' then reply = reply.err end
    reply = { 'failed', tostring(reply) }
  end
  replies[#replies + 1] = reply
  at = at + operation[1] + 1
end
return replies
`);

/**
 * First half of a new sentinel. KEYS: sentinel. ARGV: run id of the connection, random id, pending ms.
 * "set": one of this run is there. "pending": another gateway is looking up the tail. "begun": the caller must, and then `finish`.
 * "elsewhere": the server has another run id than the connection said.
 *
 * Two halves, because the floor must be a tail looked up AFTER the loss: a tail that was asked for before a second loss would be too
 * low, and a decision that went with that loss could be made again, otherwise.
 */
export const beginScript = redisScript(`
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') or ARGV[1]
if run ~= ARGV[1] then return 'elsewhere' end
local sentinel = redis.pcall('HMGET', KEYS[1], 'run', 'floor')
if not sentinel.err and sentinel[1] == run then
  if sentinel[2] and tonumber(sentinel[2]) then return 'set' end
  if not sentinel[2] and redis.call('PTTL', KEYS[1]) > 0 then return 'pending' end
end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'run', run, 'id', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 'begun'
`);

/** Second half. ARGV: random id, floor; an empty floor gives up, so that another gateway may try at once. */
export const finishScript = redisScript(`
local sentinel = redis.pcall('HMGET', KEYS[1], 'id', 'floor')
if sentinel.err or sentinel[1] ~= ARGV[1] or sentinel[2] then return 'again' end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) return 'left' end
redis.call('HSET', KEYS[1], 'floor', ARGV[2])
redis.call('PERSIST', KEYS[1])
return 'set'
`);
