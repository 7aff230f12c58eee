/** Each call at the waist fails in turn, once: with EINTR, EAGAIN, ENOMEM, EFAULT or EBUSY. */
import { failingCases } from '../support/failing-cases.ts';

failingCases(1);
