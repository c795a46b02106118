// A team of threads that share one picture's work, task after task.
//
// A task has as many parts as the team has threads. Whoever is free takes the next part, so that a
// thread that has lost its core to another program holds up nothing but a part it has begun. Workers
// look for the next task for a while, for tasks follow each other within microseconds, then sleep.

#include <stdlib.h>

#include "network.h"

#if defined(__wasm__) || defined(ULVM_NO_THREADS)

Team *team_open(int threads, ulvm_error *error) {
  fail(error, ULVM_NO_THREAD, "This build has no threads, and %d were asked for. Use 1.", threads);
  return NULL;
}
void team_run(Team *team, Task *task, void *work) {
  (void)team;
  task(work, 0, 1);
}
void team_close(Team *team) { (void)team; }

#else

#include <stdatomic.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
typedef HANDLE Thread;
typedef SRWLOCK Lock;
typedef CONDITION_VARIABLE Signal;
#define THREAD_RESULT DWORD WINAPI
static bool thread_start(Thread *thread, DWORD(WINAPI *body)(void *), void *argument) {
  *thread = CreateThread(NULL, 0, body, argument, 0, NULL);
  return *thread != NULL;
}
static void thread_join(Thread thread) {
  WaitForSingleObject(thread, INFINITE);
  CloseHandle(thread);
}
static bool lock_new(Lock *lock, Signal *signal) {
  InitializeSRWLock(lock);
  InitializeConditionVariable(signal);
  return true;
}
static void lock_free(Lock *lock, Signal *signal) { (void)lock, (void)signal; }
static void lock_take(Lock *lock) { AcquireSRWLockExclusive(lock); }
static void lock_give(Lock *lock) { ReleaseSRWLockExclusive(lock); }
static void signal_wait(Signal *signal, Lock *lock) {
  SleepConditionVariableSRW(signal, lock, INFINITE, 0);
}
static void signal_all(Signal *signal) { WakeAllConditionVariable(signal); }
#else
#include <pthread.h>
#include <sched.h>
typedef pthread_t Thread;
typedef pthread_mutex_t Lock;
typedef pthread_cond_t Signal;
#define THREAD_RESULT void *
static bool thread_start(Thread *thread, void *(*body)(void *), void *argument) {
  return pthread_create(thread, NULL, body, argument) == 0;
}
static void thread_join(Thread thread) { pthread_join(thread, NULL); }
static bool lock_new(Lock *lock, Signal *signal) {
  if (pthread_mutex_init(lock, NULL)) return false;
  if (!pthread_cond_init(signal, NULL)) return true;
  pthread_mutex_destroy(lock);
  return false;
}
static void lock_free(Lock *lock, Signal *signal) {
  pthread_mutex_destroy(lock);
  pthread_cond_destroy(signal);
}
static void lock_take(Lock *lock) { pthread_mutex_lock(lock); }
static void lock_give(Lock *lock) { pthread_mutex_unlock(lock); }
static void signal_wait(Signal *signal, Lock *lock) { pthread_cond_wait(signal, lock); }
static void signal_all(Signal *signal) { pthread_cond_broadcast(signal); }
#endif

enum { LOOKS = 20000 };  // before a waiting thread sleeps: some 100 µs

struct Team {
  int threads, started;
  Task *task;
  void *work;
  atomic_uint round;  // counts tasks; a new number is a new task
  atomic_uint next;   // the part that is taken next; task and work are set before it is 0 again
  atomic_uint done;   // parts
  atomic_int asleep;
  atomic_bool closing;
  Lock lock;
  Signal signal;
  Thread workers[];
};

static void give_core(void) {
#if defined(_WIN32)
  SwitchToThread();
#else
  sched_yield();
#endif
}

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Until there is another round than `seen`; gives its number.
static unsigned wait_for_round(Team *team, unsigned seen) {
  for (int look = 0; look < LOOKS; look++) {
    const unsigned round = atomic_load_explicit(&team->round, memory_order_acquire);
    if (round != seen) return round;
    pause_briefly();
  }
  lock_take(&team->lock);
  atomic_fetch_add(&team->asleep, 1);
  while (atomic_load(&team->round) == seen) signal_wait(&team->signal, &team->lock);
  atomic_fetch_sub(&team->asleep, 1);
  lock_give(&team->lock);
  return atomic_load_explicit(&team->round, memory_order_acquire);
}

static void wake(Team *team) {
  atomic_fetch_add(&team->round, 1);
  if (!atomic_load(&team->asleep)) return;
  lock_take(&team->lock);
  signal_all(&team->signal);
  lock_give(&team->lock);
}

static void take_parts(Team *team) {
  unsigned part;
  while ((part = atomic_fetch_add(&team->next, 1)) < (unsigned)team->threads) {
    team->task(team->work, (int)part, team->threads);
    atomic_fetch_add_explicit(&team->done, 1, memory_order_release);
  }
}

static THREAD_RESULT run_worker(void *argument) {
  Team *team = argument;
  for (unsigned round = 0;;) {
    round = wait_for_round(team, round);
    if (atomic_load(&team->closing)) break;
    take_parts(team);
  }
  return 0;
}

void team_run(Team *team, Task *task, void *work) {
  if (!team) {
    task(work, 0, 1);
    return;
  }
  team->task = task;
  team->work = work;
  atomic_store(&team->done, 0);
  atomic_store(&team->next, 0);
  wake(team);
  take_parts(team);
  for (int look = 0; atomic_load_explicit(&team->done, memory_order_acquire) < (unsigned)team->threads;
       look++) {
    if (look < LOOKS) {
      pause_briefly();
    } else {
      give_core();
    }
  }
}

Team *team_open(int threads, ulvm_error *error) {
  Team *team = calloc(1, sizeof(Team) + (size_t)(threads - 1) * sizeof(Thread));
  if (!team || !lock_new(&team->lock, &team->signal)) {
    free(team);
    fail(error, ULVM_NO_MEMORY, "There is no memory for %d threads. Use 1.", threads);
    return NULL;
  }
  team->threads = threads;
  atomic_store(&team->next, (unsigned)threads);  // nothing to take yet
  for (int i = 0; i < threads - 1; i++) {
    if (!thread_start(&team->workers[i], run_worker, team)) {
      team_close(team);
      fail(error, ULVM_NO_THREAD, "The system gave no thread %d of %d. Use fewer.", i + 2, threads);
      return NULL;
    }
    team->started++;
  }
  return team;
}

void team_close(Team *team) {
  atomic_store(&team->closing, true);
  wake(team);
  for (int i = 0; i < team->started; i++) thread_join(team->workers[i]);
  lock_free(&team->lock, &team->signal);
  free(team);
}

#endif
