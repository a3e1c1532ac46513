//! What Redis executes as a whole. The first keys are always `fence`, `owner` and `commits`.
//!
//! Where a script checks the token, it answers 0 when another server's is there, and -1 when there is none.

/// Takes the lease if nobody has it. Arguments: token, lease in milliseconds. Answers the last commit's number.
pub(super) const ACQUIRE: &str = "
if redis.call('EXISTS', KEYS[2]) == 1 then return false end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return tonumber(redis.call('GET', KEYS[3]) or '0')
";

/// Changes rows and the commit's number. Arguments: token, lease, number, then `S key field row` or `D key field`.
pub(super) const COMMIT: &str = "
local fence = redis.call('GET', KEYS[1])
if fence ~= ARGV[1] then return fence and 0 or -1 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
local i = 4
while i <= #ARGV do
  local key = KEYS[tonumber(ARGV[i + 1])]
  if ARGV[i] == 'S' then
    redis.call('HSET', key, ARGV[i + 2], ARGV[i + 3])
    i = i + 4
  else
    redis.call('HDEL', key, ARGV[i + 2])
    i = i + 3
  end
end
redis.call('SET', KEYS[3], ARGV[3])
return 1
";

/// Renews the lease. Arguments: token, lease.
pub(super) const RENEW: &str = "
local fence = redis.call('GET', KEYS[1])
if fence ~= ARGV[1] then return fence and 0 or -1 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
";

/// After an outage: changes the token, so that scripts with the old one do nothing. Arguments: old token, new token,
/// lease. Answers the last commit's number, -1 when another server was here, -2 when Redis is empty.
pub(super) const REJOIN: &str = "
local fence = redis.call('GET', KEYS[1])
if fence and fence ~= ARGV[1] then return -1 end
if not fence and redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
if not fence then return -2 end
return tonumber(redis.call('GET', KEYS[3]) or '0')
";

/// Puts what was written aside in place. Arguments: token, lease, commits, schema version. Keys after the first three:
/// `schema`, then the place and the aside of each table.
pub(super) const REPLACE: &str = "
local fence = redis.call('GET', KEYS[1])
if fence ~= ARGV[1] then return fence and 0 or -1 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
for i = 5, #KEYS, 2 do
  redis.call('DEL', KEYS[i])
  if redis.call('EXISTS', KEYS[i + 1]) == 1 then redis.call('RENAME', KEYS[i + 1], KEYS[i]) end
end
redis.call('SET', KEYS[3], ARGV[3])
redis.call('SET', KEYS[4], ARGV[4])
return 1
";

/// Gives the lease back. Arguments: token.
pub(super) const RELEASE: &str = "
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return 1
";
