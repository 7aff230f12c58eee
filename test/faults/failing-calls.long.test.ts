/** Each call at the waist fails in turn, with each of EINTR, EAGAIN, ENOMEM, EFAULT and EBUSY. */
import { FAILURES } from '../support/failing.ts';
import { failingCases } from '../support/failing-cases.ts';

failingCases(FAILURES.length);
